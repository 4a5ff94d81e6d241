// Package verify decides whether an image is the one that was meant: by a checksum that is
// given or stands in a sums file, and by the signature of a key that this host pins.
//
// It fetches nothing and reads no image itself: a Checksum gives a hash to feed, a Verifier
// is an io.Writer, so both see the image in the same pass that writes it. Everything that
// comes from outside is bounded, and only plain Go decides on it: no gpg, no minisign.
//
// Nothing is trusted on first use. A signature counts when its key is in the Keyring, which
// is loaded from files of the host's configuration.
package verify

import "fmt"

// MaxText is the largest sums file, signature or key file that is looked at, in bytes.
// Debian's SHA512SUMS of all discs is 20 KiB, a keyring of a distribution 100 KiB.
const MaxText = 1 << 20

// Reason is what kind of refusal an Error is.
type Reason string

// The reasons.
const (
	Malformed        Reason = "malformed"         // it can't be read as what it should be
	TooLarge         Reason = "too-large"         // more than MaxText
	Weak             Reason = "weak"              // MD5 or SHA-1
	NotListed        Reason = "not-listed"        // the sums file doesn't have the name
	Ambiguous        Reason = "ambiguous"         // it has it twice, with different sums
	Unverified       Reason = "unverified"        // it is signed, and that wasn't checked
	Mismatch         Reason = "mismatch"          // the content has another sum
	UnknownKey       Reason = "unknown-key"       // the signer's key is not pinned
	ExpiredKey       Reason = "expired-key"       // it was valid once
	RevokedKey       Reason = "revoked-key"       // its owner says not to trust it
	ExpiredSignature Reason = "expired-signature" // or one from the future
	WrongSignature   Reason = "wrong-signature"   // of other bytes, or damaged
	NotStreamable    Reason = "not-streamable"    // needs the whole image in memory
)

// Error is why something is not accepted.
type Error struct {
	Reason Reason
	Detail string
	Next   string // what can be done about it; may be empty
	KeyID  string // of the signer's key, when the refusal is about it
	Err    error  // may be nil
}

func (e *Error) Error() string {
	if e.Next == "" {
		return e.Detail
	}
	return e.Detail + "; " + e.Next
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(r Reason, next, format string, args ...any) *Error {
	return &Error{Reason: r, Next: next, Detail: fmt.Sprintf(format, args...)}
}

func bounded(what string, text []byte) error {
	if len(text) > MaxText {
		return refuse(TooLarge, "is it what you meant?", "%s has %d bytes, at most %d (1 MiB) are looked at", what, len(text), MaxText)
	}
	return nil
}
