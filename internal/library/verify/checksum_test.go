package verify

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	hex32  = strings.Repeat("0a", 16)
	hex40  = strings.Repeat("0b", 20)
	hex56  = strings.Repeat("0c", 28)
	hex64  = strings.Repeat("0d", 32)
	hex96  = strings.Repeat("0e", 48)
	hex128 = strings.Repeat("0f", 64)
)

func TestChecksumsAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]Checksum{
		"sha256:" + hex64:                    {Algorithm: SHA256, Hex: hex64},
		"SHA256:" + strings.ToUpper(hex64):   {Algorithm: SHA256, Hex: hex64},
		" sha-256: " + hex64 + "\n":          {Algorithm: SHA256, Hex: hex64},
		"sha512:" + hex128:                   {Algorithm: SHA512, Hex: hex128},
		"sha384:" + hex96:                    {Algorithm: SHA384, Hex: hex96},
		"sha224:" + hex56:                    {Algorithm: SHA224, Hex: hex56},
		hex64:                                {Algorithm: SHA256, Hex: hex64},
		hex96:                                {Algorithm: SHA384, Hex: hex96},
		hex128:                               {Algorithm: SHA512, Hex: hex128},
		"{SHA-512}" + hex128:                 {Algorithm: SHA512, Hex: hex128},
		"{SHA-256}" + strings.ToUpper(hex64): {Algorithm: SHA256, Hex: hex64},
		"file:https://example.com/SHA256SUMS": {
			File: "https://example.com/SHA256SUMS"},
		"file:/srv/SHA512SUMS": {File: "/srv/SHA512SUMS"},
	} {
		got, err := ParseChecksum(text, Strong)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseChecksum(got.String(), Strong)
		require.NoError(t, err)
		require.Equal(t, got, again)
	}
}

func TestChecksumsThatAreRefusedSayWhatWouldBeRight(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "0 hexadecimal digits: sha256 has 64, sha384 96, sha512 128; write it as sha256:HEX",
		"sha256:" + hex64[1:]:       "63 hexadecimal digits: sha256 has 64",
		"sha256:" + hex128:          "128 hexadecimal digits: sha256 has 64",
		hex64[1:]:                   "63 hexadecimal digits: sha256 has 64, sha384 96, sha512 128",
		"f":                         "1 hexadecimal digit: ",
		"sha256:" + hex64[1:] + "g": "is not hexadecimal from its character 64 on",
		"sha3-256:" + hex64:         `checksums of "sha3-256" are not known; take sha256 or sha512`,
		"blake2b:" + hex128:         `checksums of "blake2b" are not known`,
		"{SHA-512" + hex128:         "has no }; write it as {SHA-512}HEX",
		"file:":                     "file: without the URL or path of a sums file",
		"https://example.com/SUMS":  `"https://example.com/SUMS" is no checksum; write file: before the URL`,
		"/srv/SHA256SUMS":           "write file: before",
		strings.Repeat("a", 5000):   "a checksum of 5000 characters",
	} {
		_, err := ParseChecksum(text, AllowWeak)
		var e *Error
		require.ErrorAs(t, err, &e, text)
		require.Equal(t, Malformed, e.Reason)
		require.Contains(t, err.Error(), want)
	}
}

func TestWeakChecksumsAreTakenOnDemandOnly(t *testing.T) {
	for _, text := range []string{"md5:" + hex32, "sha1:" + hex40, hex32, hex40, "{MD5}" + hex32, "{SHA-1}" + hex40} {
		_, err := ParseChecksum(text, Strong)
		var e *Error
		require.ErrorAs(t, err, &e, text)
		require.Equal(t, Weak, e.Reason)
		require.Contains(t, err.Error(), "--allow-weak-checksum")
		c, err := ParseChecksum(text, AllowWeak)
		require.NoError(t, err, text)
		require.True(t, c.Algorithm.Weak())
	}
}

func TestAChecksumIsComparedWithAHashOfItsAlgorithm(t *testing.T) {
	for _, a := range []Algorithm{MD5, SHA1, SHA224, SHA256, SHA384, SHA512} {
		h := a.New()
		require.Equal(t, a.digits(), 2*h.Size())
		_, _ = h.Write([]byte("hello"))
		err := Checksum{Algorithm: a, Hex: strings.Repeat("0", a.digits())}.Check(h)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, Mismatch, e.Reason)
	}
	h := SHA256.New()
	_, _ = h.Write([]byte("hello"))
	c, err := ParseChecksum("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", Strong) // of sha256sum
	require.NoError(t, err)
	require.NoError(t, c.Check(h))
}

// FuzzParseChecksum: what is taken is whole and reads as itself again.
func FuzzParseChecksum(f *testing.F) {
	for _, s := range []string{"sha256:" + hex64, hex128, "{MD5}" + hex32, "file:/x", "{", "sha512:", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseChecksum(s, AllowWeak)
		if err != nil {
			return
		}
		if c.File == "" && len(c.Hex) != c.Algorithm.digits() {
			t.Fatalf("%q is %+v", s, c)
		}
		if again, err := ParseChecksum(c.String(), AllowWeak); err != nil || again != c {
			t.Fatalf("%q is %+v, and again %+v, %v", s, c, again, err)
		}
	})
}
