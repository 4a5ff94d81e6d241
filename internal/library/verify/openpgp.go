package verify

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxSignatures is how many signatures of pinned keys are hashed for. A distribution signs
// with two or three.
const maxSignatures = 4

// isOpenPGP tells an OpenPGP signature, armored or binary, from text.
func isOpenPGP(sig []byte) bool {
	return bytes.Contains(sig, []byte("-----BEGIN PGP")) || len(sig) > 0 && sig[0]&0x80 != 0
}

// candidate is one signature whose key is pinned.
type candidate struct {
	signature *packet.Signature
	key       openpgp.Key
	signed    hash.Hash // what the signature is of
	feed      hash.Hash // takes the content: signed, or one before it that makes line ends CRLF
}

type openpgpVerifier struct{ candidates []candidate }

func (v *openpgpVerifier) Write(p []byte) (int, error) {
	for _, c := range v.candidates {
		c.feed.Write(p) // hash.Hash: it never returns an error
	}
	return len(p), nil
}

// Close accepts one good signature: others may be of keys that came later.
func (v *openpgpVerifier) Close() (Signer, error) {
	var err *Error
	for _, c := range v.candidates {
		if e := c.key.PublicKey.VerifySignature(c.signed, c.signature); e != nil {
			err = wrong(fingerprint(c.key.PublicKey))
			err.Err = e
			continue
		}
		s := Signer{Kind: OpenPGP, KeyID: fingerprint(c.key.Entity.PrimaryKey)}
		if i := c.key.Entity.PrimaryIdentity(); i != nil {
			s.Identity = i.Name
		}
		return s, nil
	}
	return Signer{}, err
}

func (k *Keyring) openpgpVerifier(sig []byte) (Verifier, error) {
	var body io.Reader = bytes.NewReader(sig)
	if bytes.Contains(sig, []byte("-----BEGIN PGP")) {
		block, err := armor.Decode(body)
		if err != nil || block.Type != openpgp.SignatureType {
			return nil, refuse(Malformed, "get the signature again", "the OpenPGP signature can't be read: it is no armored signature")
		}
		body = block.Body
	}
	return k.candidates(body)
}

// candidates takes the signatures that count. The error is about the last one that
// doesn't, when none does.
func (k *Keyring) candidates(body io.Reader) (Verifier, error) {
	v := &openpgpVerifier{}
	var last error
	for r := packet.NewReader(body); len(v.candidates) < maxSignatures; {
		p, err := r.NextWithUnsupported()
		if errors.Is(err, io.EOF) {
			break
		}
		if u, ok := p.(*packet.UnsupportedPacket); ok && err == nil {
			// Such as MD5 and RIPEMD-160, which the library doesn't have at all.
			last = refuse(Weak, "ask for one by SHA-256 or better", "the OpenPGP signature is of a kind or hash that isn't accepted: %v", u.Error)
			continue
		}
		s, ok := p.(*packet.Signature)
		if err != nil || !ok {
			e := refuse(Malformed, "get the signature again", "the OpenPGP signature can't be read")
			e.Err = err
			return nil, e
		}
		c, err := k.candidate(s)
		if err != nil {
			last = worse(last, err)
			continue
		}
		v.candidates = append(v.candidates, c)
	}
	switch {
	case len(v.candidates) > 0:
		return v, nil
	case last == nil:
		return nil, refuse(Malformed, "get the signature again", "there is no signature in the OpenPGP file")
	}
	return nil, last
}

// worse is the error that says more: a key that is pinned and of no use is what a person
// has to look at, not the other signature that nobody knows.
func worse(a, b error) error {
	var e *Error
	if a != nil && errors.As(b, &e) && e.Reason == UnknownKey {
		return a
	}
	return b
}

// candidate is a signature whose key is pinned and good, by what is known before the
// content is.
func (k *Keyring) candidate(s *packet.Signature) (candidate, error) {
	id := issuer(s)
	if s.IssuerKeyId == nil {
		return candidate{}, refuse(Malformed, "sign it again", "the OpenPGP signature doesn't say by which key it is")
	}
	keys := k.openpgp.KeysByIdUsage(*s.IssuerKeyId, packet.KeyFlagSign)
	if len(keys) == 0 {
		return candidate{}, k.unknown(OpenPGP, id)
	}
	if (*packet.Config)(nil).RejectMessageHashAlgorithm(s.Hash) {
		e := refuse(Weak, "ask for one by SHA-256 or better", "the signature by key %s is of the content's %s, for which another content can be made", id, s.Hash)
		e.KeyID = id
		return candidate{}, e
	}
	var err error
	for _, key := range keys {
		if err = k.usable(key, s); err != nil {
			continue
		}
		c := candidate{signature: s, key: key}
		if c.signed, err = s.PrepareVerify(); err != nil {
			continue
		}
		switch s.SigType {
		case packet.SigTypeBinary:
			c.feed = c.signed
		case packet.SigTypeText:
			c.feed = openpgp.NewCanonicalTextHash(c.signed)
		default:
			err = refuse(Malformed, "sign it with `gpg --detach-sign`", "the OpenPGP signature by key %s is not one of a file", id)
			continue
		}
		return c, nil
	}
	return candidate{}, err
}

// usable says what is wrong with a key now, or with the signature's own time.
func (k *Keyring) usable(key openpgp.Key, s *packet.Signature) error {
	now := k.now()
	id := fingerprint(key.PublicKey)
	about := func(r Reason, next, format string, args ...any) error {
		e := refuse(r, next, format, args...)
		e.KeyID = id
		return e
	}
	primary := key.Entity.PrimaryKey
	self, identity := key.Entity.PrimarySelfSignature()
	if self == nil || key.SelfSignature == nil {
		return about(Malformed, "export the key again", "the key %s has no valid signature of its owner", id)
	}
	if key.Entity.Revoked(now) || key.PublicKey != primary && key.Revoked(now) || identity != nil && identity.Revoked(now) {
		return about(RevokedKey, "pin the key that came after it", "the key %s of the signature has been revoked by its owner", id)
	}
	if primary.KeyExpired(self, now) || key.PublicKey != primary && key.PublicKey.KeyExpired(key.SelfSignature, now) {
		return about(ExpiredKey, "get the key again, its owner may have renewed it; and see that this host's clock is right",
			"the key %s of the signature has expired, or is not valid yet (it is %s here)", id, now.UTC().Format("2006-01-02 15:04 MST"))
	}
	if s.SigExpired(now) {
		return about(ExpiredSignature, "get a newer one; and see that this host's clock is right",
			"the signature by key %s of %s has expired, or is from the future (it is %s here)",
			id, s.CreationTime.UTC().Format("2006-01-02 15:04"), now.UTC().Format("2006-01-02 15:04 MST"))
	}
	for _, n := range s.Notations {
		if n.IsCritical {
			return about(Malformed, "sign it without", "the signature by key %s has a critical notation %.60q, which isn't known here", id, n.Name)
		}
	}
	return nil
}

// verifyClearsigned checks a text that has its signature with it.
func (k *Keyring) verifyClearsigned(sums []byte) ([]byte, Signer, error) {
	block, _ := clearsign.Decode(sums)
	if block == nil {
		if bytes.Contains(sums, []byte(clearsigned)) {
			return nil, Signer{}, refuse(Malformed, "get it again", "the clearsigned sums file is damaged, or signed by a hash that isn't accepted")
		}
		return nil, Signer{}, refuse(Unverified, "name its signature, such as SHA256SUMS.gpg", "the sums file has no signature")
	}
	v, err := k.candidates(block.ArmoredSignature.Body)
	if err != nil {
		return nil, Signer{}, err
	}
	if _, err := v.Write(block.Bytes); err != nil {
		return nil, Signer{}, err
	}
	s, err := v.Close()
	if err != nil {
		return nil, Signer{}, err
	}
	return block.Plaintext, s, nil
}

// unframed is a verified text without the frame of another signature inside.
func unframed(sums []byte) []byte {
	if block, _ := clearsign.Decode(sums); block != nil {
		return block.Plaintext
	}
	return sums
}

func issuer(s *packet.Signature) string {
	switch {
	case len(s.IssuerFingerprint) > 0:
		return strings.ToUpper(hex.EncodeToString(s.IssuerFingerprint))
	case s.IssuerKeyId != nil:
		return fmt.Sprintf("%016X", *s.IssuerKeyId)
	}
	return "?"
}

func fingerprint(k *packet.PublicKey) string {
	return strings.ToUpper(hex.EncodeToString(k.Fingerprint))
}
