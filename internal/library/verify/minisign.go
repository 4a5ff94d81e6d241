package verify

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// The formats are those of https://jedisct1.github.io/minisign/#signature-format. The
// libraries that there are want the message in memory or to read it themselves; we are
// written to.
const (
	algorithmLegacy    = "Ed" // of the bytes themselves
	algorithmPrehashed = "ED" // of their BLAKE2b-512
	untrustedComment   = "untrusted comment:"
	trustedComment     = "trusted comment: "
	keyIDSize          = 8
)

type minisignKey struct {
	id      uint64
	key     ed25519.PublicKey
	comment string
}

type minisignSignature struct {
	id        uint64
	prehashed bool
	signature []byte
	trusted   string // the comment, which global signs
	global    []byte
}

// keyID is a key's number as minisign prints it: sixteen digits at most.
func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// parseMinisignKey reads a .pub file, or its second line alone, which is how people pass
// keys on.
func parseMinisignKey(text []byte) (minisignKey, error) {
	const next = "name a minisign .pub file or an OpenPGP public key"
	var k minisignKey
	all := textLines(text)
	if len(all) == 2 && strings.HasPrefix(all[0], untrustedComment) {
		k.comment = strings.TrimSpace(strings.TrimPrefix(all[0], untrustedComment))
		all = all[1:]
	}
	if len(all) != 1 {
		return k, refuse(Malformed, next, "it is no public key")
	}
	raw, err := base64.StdEncoding.DecodeString(all[0])
	if err != nil || len(raw) != 2+keyIDSize+ed25519.PublicKeySize || string(raw[:2]) != algorithmLegacy {
		return k, refuse(Malformed, next, "it is no public key")
	}
	k.id = binary.LittleEndian.Uint64(raw[2:])
	k.key = ed25519.PublicKey(raw[2+keyIDSize:])
	return k, nil
}

func parseMinisignSignature(text []byte) (minisignSignature, error) {
	const next = "name a .minisig, .asc, .sig or .gpg file"
	var s minisignSignature
	all := textLines(text)
	if len(all) != 4 || !strings.HasPrefix(all[0], untrustedComment) || !strings.HasPrefix(all[2], trustedComment) {
		return s, refuse(Malformed, next, "the signature is neither one of minisign nor one of OpenPGP")
	}
	raw, err := base64.StdEncoding.DecodeString(all[1])
	global, err2 := base64.StdEncoding.DecodeString(all[3])
	if err != nil || err2 != nil || len(raw) != 2+keyIDSize+ed25519.SignatureSize || len(global) != ed25519.SignatureSize {
		return s, refuse(Malformed, "get the signature again", "the minisign signature is damaged")
	}
	switch string(raw[:2]) {
	case algorithmLegacy:
	case algorithmPrehashed:
		s.prehashed = true
	default:
		return s, refuse(Malformed, next, "the minisign signature is of an algorithm %.2q that isn't known", raw[:2])
	}
	s.id = binary.LittleEndian.Uint64(raw[2:])
	s.signature, s.global = raw[2+keyIDSize:], global
	s.trusted = strings.TrimPrefix(all[2], trustedComment)
	return s, nil
}

// textLines are the lines of a text without those that are empty at its end.
func textLines(text []byte) []string {
	all := strings.Split(strings.TrimRight(string(text), "\r\n"), "\n")
	for i, l := range all {
		all[i] = strings.TrimSuffix(l, "\r")
	}
	return all
}

// minisignVerifier checks the signature of a message. The trusted comment is checked at
// once: it needs no message.
func (k *Keyring) minisignVerifier(s minisignSignature) (Verifier, error) {
	var key *minisignKey
	commented := append(bytes.Clone(s.signature), s.trusted...)
	for _, candidate := range k.minisign {
		if candidate.id != s.id {
			continue
		}
		key = &candidate
		if ed25519.Verify(candidate.key, commented, s.global) {
			break
		}
	}
	id := keyID(s.id)
	if key == nil {
		return nil, k.unknown(Minisign, id)
	}
	if !ed25519.Verify(key.key, commented, s.global) {
		e := wrong(id)
		e.Detail, e.Next = "the trusted comment of the signature by key "+id+" is not what its signer wrote", "get the signature again"
		return nil, e
	}
	v := &minisignVerifier{signature: s, key: *key}
	if s.prehashed {
		v.hash, _ = blake2b.New512(nil) // fails for a key that is too long, and there is none
	}
	return v, nil
}

type minisignVerifier struct {
	signature minisignSignature
	key       minisignKey
	hash      hash.Hash // of one that is prehashed
	message   []byte    // of one that isn't; VerifySums has bounded it
}

func (v *minisignVerifier) Write(p []byte) (int, error) {
	if v.hash != nil {
		return v.hash.Write(p)
	}
	v.message = append(v.message, p...)
	return len(p), nil
}

func (v *minisignVerifier) Close() (Signer, error) {
	message, id := v.message, keyID(v.key.id)
	if v.hash != nil {
		message = v.hash.Sum(nil)
	}
	if !ed25519.Verify(v.key.key, message, v.signature.signature) {
		e := wrong(id)
		e.Detail += fmt.Sprintf("; its signer wrote %.200q", v.signature.trusted)
		return Signer{}, e
	}
	return Signer{Kind: Minisign, KeyID: id, Identity: v.key.comment, Comment: v.signature.trusted}, nil
}
