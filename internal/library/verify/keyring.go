package verify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Kind is a kind of signature.
type Kind string

// The kinds.
const (
	Minisign Kind = "minisign"
	OpenPGP  Kind = "openpgp"
)

// Signer is who signed, as a record keeps it.
type Signer struct {
	Kind     Kind
	KeyID    string // minisign: the 16 digits that it prints; OpenPGP: the primary key's fingerprint
	Identity string // OpenPGP: the user ID; minisign: the public key file's comment
	Comment  string // minisign: the trusted comment
}

// Keyring is the keys that are pinned. It doesn't change and may be used by several.
type Keyring struct {
	minisign []minisignKey
	openpgp  openpgp.EntityList
	now      func() time.Time
}

// armorBegin begins an OpenPGP public key, or several, in text.
const armorBegin = "-----BEGIN PGP PUBLIC KEY BLOCK-----"

// LoadKeys reads public keys: a minisign .pub file, or OpenPGP keys, armored or binary,
// in each file. The error has one of each file that is of no use, and there is no keyring
// then: a host that pins keys shall not run with fewer than it was told. Beside good keys
// in one file, OpenPGP keys of a kind that nobody should use any more are passed over.
func LoadKeys(paths []string) (*Keyring, error) {
	k := &Keyring{now: time.Now}
	var errs []error
	for _, path := range paths {
		if err := k.load(path); err != nil {
			errs = append(errs, fmt.Errorf("the key file %s: %w", path, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return k, nil
}

// Len is how many keys there are.
func (k *Keyring) Len() int { return len(k.minisign) + len(k.openpgp) }

func (k *Keyring) load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxText+1))
	if err != nil {
		return err
	}
	if err := bounded("it", text); err != nil {
		return err
	}
	switch {
	case bytes.Contains(text, []byte("PRIVATE KEY BLOCK")):
		return refuse(Malformed, "pin the public key: `gpg --armor --export`", "it is a private key")
	case bytes.Contains(text, []byte(armorBegin)):
		// One file may have several, one after the other; the library reads the first.
		for i, block := range bytes.Split(text, []byte(armorBegin)) {
			if i == 0 { // what people write above it
				continue
			}
			block = append([]byte(armorBegin), block...)
			if err := k.addOpenPGP(openpgp.ReadArmoredKeyRing(bytes.NewReader(block))); err != nil {
				return err
			}
		}
		return nil
	case len(text) > 0 && text[0]&0x80 != 0: // every OpenPGP packet begins so (RFC 9580, 4.2)
		return k.addOpenPGP(openpgp.ReadKeyRing(bytes.NewReader(text)))
	}
	key, err := parseMinisignKey(text)
	if err != nil {
		return err
	}
	k.minisign = append(k.minisign, key)
	return nil
}

func (k *Keyring) addOpenPGP(keys openpgp.EntityList, err error) error {
	if err != nil {
		e := refuse(Malformed, "export it again: `gpg --armor --export KEYID`", "it has no OpenPGP public key that can be read: %v", err)
		e.Err = err
		return e
	}
	for _, e := range keys {
		if e.PrivateKey != nil {
			return refuse(Malformed, "pin the public key: `gpg --export`", "it is a private key")
		}
	}
	k.openpgp = append(k.openpgp, keys...)
	return nil
}

// Verifier checks a signature of what is written to it, a piece at a time.
type Verifier interface {
	io.Writer
	// Close is called once, after the last byte. The error is an *Error.
	Close() (Signer, error)
}

// NewVerifier checks a detached signature of a stream. What can be said before the first
// byte is said now: a key that isn't pinned, has expired or was revoked, a weak hash, a
// minisign signature of the old format, which would need the whole stream in memory.
func (k *Keyring) NewVerifier(sig []byte) (Verifier, error) {
	if err := bounded("the signature", sig); err != nil {
		return nil, err
	}
	if isOpenPGP(sig) {
		return k.openpgpVerifier(sig)
	}
	s, err := parseMinisignSignature(sig)
	if err != nil {
		return nil, err
	}
	if !s.prehashed {
		return nil, refuse(NotStreamable, "sign it with `minisign -SH`, or sign a sums file",
			"the signature is of minisign's old format, which has to have the whole image in memory")
	}
	return k.minisignVerifier(s)
}

// VerifySums checks the signature of a sums file and returns what it signs. sig is a
// detached signature of sums; without one, sums is clearsigned, and the text is what
// stands inside.
func (k *Keyring) VerifySums(sums, sig []byte) (text []byte, s Signer, err error) {
	if err := errors.Join(bounded("the sums file", sums), bounded("the signature", sig)); err != nil {
		return nil, Signer{}, err
	}
	if len(sig) == 0 {
		return k.verifyClearsigned(sums)
	}
	var v Verifier
	if isOpenPGP(sig) {
		v, err = k.openpgpVerifier(sig)
	} else {
		var m minisignSignature
		if m, err = parseMinisignSignature(sig); err == nil {
			v, err = k.minisignVerifier(m)
		}
	}
	if err != nil {
		return nil, Signer{}, err
	}
	if _, err := v.Write(sums); err != nil {
		return nil, Signer{}, err
	}
	if s, err = v.Close(); err != nil {
		return nil, Signer{}, err
	}
	return unframed(sums), s, nil
}

// unknown is of a key that isn't pinned.
func (k *Keyring) unknown(kind Kind, id string) error {
	e := refuse(UnknownKey, "if you trust it, put the public key into a file and name that in `keys` of [library]",
		"it is signed with the %s key %s, which is none of the %d of this host", kind, id, k.Len())
	e.KeyID = id
	return e
}

func wrong(id string) *Error {
	e := refuse(WrongSignature, "it is of another file or version, or the content was changed",
		"the signature by key %s is not of this content", id)
	e.KeyID = id
	return e
}
