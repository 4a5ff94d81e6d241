package verify

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// Algorithm is a hash by its name.
type Algorithm string

// The algorithms, the strongest last.
const (
	MD5    Algorithm = "md5"
	SHA1   Algorithm = "sha1"
	SHA224 Algorithm = "sha224"
	SHA256 Algorithm = "sha256"
	SHA384 Algorithm = "sha384"
	SHA512 Algorithm = "sha512"
)

// New is a hash of the algorithm.
func (a Algorithm) New() hash.Hash {
	switch a {
	case MD5:
		return md5.New()
	case SHA1:
		return sha1.New()
	case SHA224:
		return sha256.New224()
	case SHA384:
		return sha512.New384()
	case SHA512:
		return sha512.New()
	default:
		return sha256.New()
	}
}

// Weak reports whether another file with the same sum can be made (RFC 6151 on MD5, the
// SHAttered attack on SHA-1).
func (a Algorithm) Weak() bool { return a == MD5 || a == SHA1 }

// digits is how many hexadecimal digits a sum has, 0 for an algorithm that isn't known.
func (a Algorithm) digits() int {
	switch a {
	case MD5:
		return 2 * md5.Size
	case SHA1:
		return 2 * sha1.Size
	case SHA224:
		return 2 * sha256.Size224
	case SHA256:
		return 2 * sha256.Size
	case SHA384:
		return 2 * sha512.Size384
	case SHA512:
		return 2 * sha512.Size
	}
	return 0
}

// byDigits is the algorithm that sums of so many digits are meant to be of.
func byDigits(n int) (Algorithm, bool) {
	for _, a := range []Algorithm{MD5, SHA1, SHA224, SHA256, SHA384, SHA512} {
		if a.digits() == n {
			return a, true
		}
	}
	return "", false
}

// byName knows sha256, SHA-256, and OpenSSL's SHA2-256.
func byName(name string) (Algorithm, bool) {
	n := strings.ToLower(name)
	if rest, ok := strings.CutPrefix(n, "sha2-"); ok {
		n = "sha" + rest
	}
	a := Algorithm(strings.Replace(n, "-", "", 1))
	return a, a.digits() > 0
}

// Strength is which algorithms are taken.
type Strength int

// The strengths.
const (
	Strong    Strength = iota // SHA-2
	AllowWeak                 // MD5 and SHA-1, too: they find accidents, not attacks
)

func (s Strength) check(a Algorithm) error {
	if a.Weak() && s != AllowWeak {
		return refuse(Weak, "give a sha256 or sha512, or say --allow-weak-checksum",
			"a checksum of %s protects against accidents only: somebody can make another image with the same one", a)
	}
	return nil
}

// Checksum is what an image is to be compared with: a sum, or the file that has it.
type Checksum struct {
	Algorithm Algorithm
	Hex       string // lower case; of the length that Algorithm has
	// File is the URL or path of a sums file, and Algorithm and Hex are empty then: the
	// caller gets it and asks FindSum.
	File string
}

func (c Checksum) String() string {
	if c.File != "" {
		return "file:" + c.File
	}
	return string(c.Algorithm) + ":" + c.Hex
}

// Check compares a hash that has seen all of an image.
func (c Checksum) Check(h hash.Hash) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != c.Hex {
		return refuse(Mismatch, "get it again, from elsewhere if need be: it was changed or damaged on its way, or the checksum is of another version",
			"the content's %s is %s, and %s was to be expected", c.Algorithm, got, c.Hex)
	}
	return nil
}

const forms = "write it as sha256:HEX, sha512:HEX or file:URL-OR-PATH of a sums file"

// ParseChecksum reads sha256:HEX (sha224, sha384, sha512, md5, sha1), {SHA-512}HEX as
// CloudStack has it, HEX alone whose length tells the algorithm, or file:URL-OR-PATH.
func ParseChecksum(s string, strength Strength) (Checksum, error) {
	s = strings.TrimSpace(s)
	if len(s) > 4096 {
		return Checksum{}, refuse(Malformed, forms, "a checksum of %d characters", len(s))
	}
	if file, ok := strings.CutPrefix(s, "file:"); ok {
		if file = strings.TrimSpace(file); file == "" {
			return Checksum{}, refuse(Malformed, forms, "file: without the URL or path of a sums file")
		}
		return Checksum{File: file}, nil
	}
	if strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "/") {
		return Checksum{}, refuse(Malformed, "write file: before the URL or path of a sums file", "%.40q is no checksum", s)
	}
	name, digits, named := strings.Cut(s, ":")
	if rest, ok := strings.CutPrefix(s, "{"); ok {
		if name, digits, named = strings.Cut(rest, "}"); !named {
			return Checksum{}, refuse(Malformed, "write it as {SHA-512}HEX", "%.40q has no }", s)
		}
	}
	if !named {
		digits = s
	}
	digits = strings.ToLower(strings.TrimSpace(digits))
	if i := strings.IndexFunc(digits, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }); i >= 0 {
		return Checksum{}, refuse(Malformed, forms, "%.40q is not hexadecimal from its character %d on", digits, i+1)
	}
	var a Algorithm
	if named {
		var ok bool
		if a, ok = byName(strings.TrimSpace(name)); !ok {
			return Checksum{}, refuse(Malformed, "take sha256 or sha512", "checksums of %.40q are not known", name)
		}
		if len(digits) != a.digits() {
			return Checksum{}, refuse(Malformed, "is it copied whole?", "%s: %s has %d", hexadecimal(len(digits)), a, a.digits())
		}
	} else {
		var ok bool
		if a, ok = byDigits(len(digits)); !ok {
			return Checksum{}, refuse(Malformed, forms, "%s: sha256 has 64, sha384 96, sha512 128", hexadecimal(len(digits)))
		}
	}
	if err := strength.check(a); err != nil {
		return Checksum{}, err
	}
	return Checksum{Algorithm: a, Hex: digits}, nil
}

func hexadecimal(n int) string {
	if n == 1 {
		return "1 hexadecimal digit"
	}
	return fmt.Sprintf("%d hexadecimal digits", n)
}
