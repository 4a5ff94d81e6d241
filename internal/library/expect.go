package library

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/verify"
	"github.com/trayd/trayd/internal/wire"
)

// expectation is what a content has to be.
type expectation struct {
	sum       verify.Checksum // zero: nothing was said
	signature []byte          // of the content; nil: none
	keys      *verify.Keyring
	signer    string // of the sums, verified already
}

// expect finds out what the content has to be, from the request and from what it points
// to. It is before the first byte of the image: a request that can't succeed costs nothing.
func (l *Library) expect(ctx context.Context, r *Request) (*expectation, error) {
	o, client := l.configured()
	x := &expectation{}
	strength := verify.Strong
	if r.AllowWeak {
		if !o.AllowWeak {
			return nil, problem(Unverified, "give a sha256 or sha512, or have `allow_weak_checksums = true` set in [library]", "this host takes no weak checksums")
		}
		strength = verify.AllowWeak
	}
	signature := r.SignatureData
	if r.Signature != "" {
		var err error
		if signature, err = client.Small(ctx, r.Signature, verify.MaxText); err != nil {
			return nil, refused("the signature can't be had: ", err)
		}
	}
	var err error
	if x.keys, err = verify.LoadKeys(o.Keys); err != nil {
		return nil, problem(Failed, "correct `keys` in [library] of trayd.toml", "the keys of this host can't be read: %w", err)
	}
	if r.Checksum != "" {
		if x.sum, err = verify.ParseChecksum(r.Checksum, strength); err != nil {
			return nil, refused("", err)
		}
	}
	ofSums := x.sum.File != "" && signsSums(r)
	if signature != nil && (r.SignatureOf == "sums" && !ofSums || !slices.Contains([]string{"", "image", "sums"}, r.SignatureOf)) {
		return nil, problem(BadRequest, "say that it is of the image, or give --checksum file:URL-OR-PATH", "nothing is known that the signature is to be of (%.20q)", r.SignatureOf)
	}
	if x.sum.File != "" {
		sums := []byte(r.Sums)
		if r.Sums == "" {
			if sums, err = client.Small(ctx, x.sum.File, verify.MaxText); err != nil {
				return nil, refused("the sums can't be had: ", err)
			}
		}
		if ofSums && signature != nil || isClearsigned(sums) {
			detached := signature
			if !ofSums {
				detached = nil
			}
			var s verify.Signer
			if sums, s, err = x.keys.VerifySums(sums, detached); err != nil {
				return nil, refused("the sums: ", err)
			}
			x.signer = nameOf(s)
		}
		if x.sum, err = verify.FindSum(sums, fileName(r), strength); err != nil {
			return nil, refused("", err)
		}
	}
	if signature != nil && !ofSums {
		if _, err := x.keys.NewVerifier(signature); err != nil { // while nothing has been fetched
			return nil, refused("", err)
		}
		x.signature = signature
	}
	return x, x.enough(o.Verify)
}

// found is a request with the checksum that was found for it in a file of sums, which may
// have a mebibyte: unless that file was signed, it is of no use any more.
func (x *expectation) found(r Request) Request {
	if r.Sums != "" && x.signer == "" {
		r.Sums, r.Checksum = "", x.sum.String()
	}
	return r
}

// enough says whether that is as much as the host wants.
func (x *expectation) enough(level Level) error {
	signed := x.signer != "" || x.signature != nil
	switch {
	case level == VerifySignature && !signed:
		return problem(Unverified, "give --signature URL-OR-FILE, of the image or of the file of its checksums", "this host takes only images that are signed by one of its keys")
	case level == VerifyChecksum && !signed && x.sum.Hex == "":
		return problem(Unverified, "give --checksum sha256:HEX, or file:URL of the publisher's sums", "this host takes only images with a checksum")
	}
	return nil
}

func isClearsigned(text []byte) bool {
	return strings.HasPrefix(string(text[:min(len(text), 64)]), "-----BEGIN PGP SIGNED MESSAGE-----")
}

// signsSums reports whether a request's signature is of a file of sums, if it has one.
func signsSums(r *Request) bool {
	return r.SignatureOf == "sums" || r.SignatureOf == "" && !isOfImage(r)
}

// afterRot is what a download asks for when the content has rotted: the sum that was
// compared, and not what the publisher's sums say by then. Signed ones are needed as they are.
func (e *entry) afterRot() *Request {
	again := *e.Request
	detached := again.Signature != "" || again.SignatureData != nil
	if e.Signer != "" && strings.HasPrefix(again.Checksum, "file:") && (!detached || signsSums(&again)) {
		return &again
	}
	again.Sums, again.Checksum = "", or(e.Checksum, again.Checksum)
	if len(again.SignatureData) > maxKept {
		again.SignatureData = nil
	}
	return &again
}

// isOfImage reports whether a signature's name says that it is of the image itself, and
// not of the sums: debian.iso.asc beside debian.iso.
func isOfImage(r *Request) bool {
	base := baseOf(r.Signature)
	for _, ending := range []string{".asc", ".sig", ".gpg", ".sign", ".minisig", ".pgp"} {
		if name, ok := strings.CutSuffix(base, ending); ok && name == fileName(r) {
			return true
		}
	}
	return false
}

// fileName is what the file of the sums calls the image.
func fileName(r *Request) string {
	if r.FileName != "" || len(r.URLs) == 0 {
		return r.FileName
	}
	return baseOf(r.URLs[0])
}

func baseOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Path == "" {
		return ""
	}
	return path.Base(u.Path)
}

// nameOf is a signer for records.
func nameOf(s verify.Signer) string {
	return strings.TrimSpace(string(s.Kind) + " " + s.KeyID + " " + s.Identity)
}

// sum is a SHA-256.
type sum struct{ hash.Hash }

func newSum() sum { return sum{sha256.New()} }

func (s sum) hex() string { return hex.EncodeToString(s.Sum(nil)) }

// witness sees every byte of a content once.
type witness struct {
	x        *expectation
	content  sum
	asked    hash.Hash       // of the algorithm that was asked for; nil where that is SHA-256
	verifier verify.Verifier // nil: no signature of the content
}

// witness is a new one, for a content from its first byte on.
func (x *expectation) witness() (*witness, []io.Writer, error) {
	w := &witness{x: x, content: newSum()}
	all := []io.Writer{w.content}
	if x.sum.Hex != "" && x.sum.Algorithm != verify.SHA256 {
		w.asked = x.sum.Algorithm.New()
		all = append(all, w.asked)
	}
	if x.signature != nil {
		v, err := x.keys.NewVerifier(x.signature)
		if err != nil {
			return nil, nil, refused("", err)
		}
		w.verifier = v
		all = append(all, v)
	}
	return w, all, nil
}

// verdict compares what was seen with what was expected, and notes it.
func (w *witness) verdict(i *Image) error {
	i.SHA256 = w.content.hex()
	if w.x.sum.Hex != "" {
		h := w.asked
		if h == nil {
			h = w.content
		}
		if err := w.x.sum.Check(h); err != nil {
			return refused("", err)
		}
		i.Checksum = w.x.sum.String()
	}
	i.Signer = w.x.signer
	if w.verifier != nil {
		s, err := w.verifier.Close()
		if err != nil {
			return refused("", err)
		}
		i.Signer = nameOf(s)
	}
	return nil
}

// refused gives the errors of sources, checksums and signatures a code.
func refused(what string, err error) error {
	var (
		known  *Error
		source *fetch.Error
		check  *verify.Error
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &check):
		return &Error{Code: Code(wire.VerifyCode + string(check.Reason)), Detail: what + check.Detail, Next: or(check.Next, "ask the publisher for the right one"), Err: err}
	case errors.As(err, &source):
		e := &Error{Code: Code(wire.SourceCode + string(source.Kind)), Detail: what + source.Detail, Next: source.Next, Err: err}
		if source.URL != "" {
			e.Detail = what + source.URL + ": " + source.Detail
		}
		var all *fetch.Failed
		switch {
		case errors.As(err, &all):
			e.Detail = what + all.Error()
		case source.Kind == fetch.NoSpace:
			e.Code, e.Next = NoSpace, or(e.Next, "free space, or use another pool")
		case source.Kind == fetch.Canceled:
			e.Code, e.Next = Cancelled, "nothing is left to do"
		}
		return e
	}
	return problem(Failed, "try again", "%s%w", what, err)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
