package verify

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// keyPair makes a minisign key pair without a password.
func keyPair(t *testing.T) (pub, sec string) {
	dir := t.TempDir()
	pub, sec = filepath.Join(dir, "k.pub"), filepath.Join(dir, "k.sec")
	run(t, dir, "minisign", "-G", "-W", "-p", pub, "-s", sec)
	return pub, sec
}

// signed is a file's minisign signature.
func signed(t *testing.T, sec, content string, args ...string) []byte {
	dir := t.TempDir()
	file := filepath.Join(dir, "image.iso")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	run(t, dir, "minisign", append([]string{"-S", "-s", sec, "-m", file, "-x", "sig"}, args...)...)
	sig, err := os.ReadFile(filepath.Join(dir, "sig"))
	require.NoError(t, err)
	return sig
}

// stream feeds content to a verifier in small pieces.
func stream(t *testing.T, k *Keyring, sig []byte, content string) (Signer, error) {
	v, err := k.NewVerifier(sig)
	if err != nil {
		return Signer{}, err
	}
	for len(content) > 0 {
		n := min(7, len(content))
		_, err := v.Write([]byte(content[:n]))
		require.NoError(t, err)
		content = content[n:]
	}
	return v.Close()
}

func requireReason(t *testing.T, want Reason, err error) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Reason, err.Error())
	return e
}

func TestMinisignSignsAnImage(t *testing.T) {
	pub, sec := keyPair(t)
	k, err := LoadKeys([]string{pub})
	require.NoError(t, err)
	sig := signed(t, sec, "the image", "-t", "version 7")
	s, err := stream(t, k, sig, "the image")
	require.NoError(t, err)
	require.Equal(t, Minisign, s.Kind)
	require.Equal(t, "version 7", s.Comment)
	require.Contains(t, s.Identity, s.KeyID, "minisign writes the key's number beside it: %+v", s)

	_, err = stream(t, k, sig, "another image")
	e := requireReason(t, WrongSignature, err)
	require.Contains(t, err.Error(), `its signer wrote "version 7"`)
	require.Equal(t, s.KeyID, e.KeyID)
}

func TestMinisignsOldFormatIsForSmallFilesOnly(t *testing.T) {
	pub, sec := keyPair(t)
	k, err := LoadKeys([]string{pub})
	require.NoError(t, err)
	sig := signed(t, sec, "sums", "-l")
	_, err = stream(t, k, sig, "sums")
	requireReason(t, NotStreamable, err)
	require.ErrorContains(t, err, "sign it with `minisign -SH`")

	text, s, err := k.VerifySums([]byte("sums"), sig)
	require.NoError(t, err)
	require.Equal(t, "sums", string(text))
	require.Equal(t, Minisign, s.Kind)
	_, _, err = k.VerifySums([]byte("sumz"), sig)
	requireReason(t, WrongSignature, err)
	_, _, err = k.VerifySums([]byte("sums"), signed(t, sec, "sums"))
	require.NoError(t, err)
}

func TestAMinisignKeyThatIsNotPinned(t *testing.T) {
	pub, _ := keyPair(t)
	_, stranger := keyPair(t)
	k, err := LoadKeys([]string{pub})
	require.NoError(t, err)
	_, err = k.NewVerifier(signed(t, stranger, "x"))
	e := requireReason(t, UnknownKey, err)
	require.Len(t, e.KeyID, 16)
	require.Contains(t, err.Error(), e.KeyID)
	require.Contains(t, err.Error(), "`keys` of [library]")
}

func TestAChangedTrustedCommentIsNoticed(t *testing.T) {
	pub, sec := keyPair(t)
	k, err := LoadKeys([]string{pub})
	require.NoError(t, err)
	sig := strings.Replace(string(signed(t, sec, "x", "-t", "version 7")), "version 7", "version 8", 1)
	_, err = k.NewVerifier([]byte(sig))
	requireReason(t, WrongSignature, err)
	require.ErrorContains(t, err, "trusted comment")
}

func TestAKeyAsPeoplePassItOn(t *testing.T) {
	pub, sec := keyPair(t)
	text, err := os.ReadFile(pub)
	require.NoError(t, err)
	_, line, _ := strings.Cut(string(text), "\n")
	alone := filepath.Join(t.TempDir(), "alone.pub")
	require.NoError(t, os.WriteFile(alone, []byte(line), 0o600))
	k, err := LoadKeys([]string{alone})
	require.NoError(t, err)
	_, err = stream(t, k, signed(t, sec, "x"), "x")
	require.NoError(t, err)
}

func TestKeyFilesThatAreOfNoUse(t *testing.T) {
	dir := t.TempDir()
	pub, sec := keyPair(t)
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	empty, long, bin := write("empty", ""), write("long", strings.Repeat("x", MaxText+1)), write("binary", "\x99\x01\x02\x03")
	_, err := LoadKeys([]string{pub, empty, long, sec, bin, filepath.Join(dir, "missing"), write("armor", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nxxxx\n")})
	require.Error(t, err)
	all := strings.Split(err.Error(), "\n")
	require.Len(t, all, 6, "one for each: %v", err)
	require.Contains(t, all[0], empty+": it is no public key")
	require.Contains(t, all[1], "at most 1048576 (1 MiB)")
	require.Contains(t, all[2], sec+": it is no public key")
	require.Contains(t, all[3], "no OpenPGP public key")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSignaturesThatAreNone(t *testing.T) {
	k, err := LoadKeys(nil)
	require.NoError(t, err)
	for _, sig := range []string{"", "hello", "<html>", "-----BEGIN PGP SIGNATURE-----\n", "\x88\x01", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----\n"} {
		_, err := k.NewVerifier([]byte(sig))
		requireReason(t, Malformed, err)
	}
	_, err = k.NewVerifier(make([]byte, MaxText+1))
	requireReason(t, TooLarge, err)
}

// FuzzMinisign: nothing that isn't a key's or a signature's own text reads as one, and
// nothing makes the parsers fail.
func FuzzMinisign(f *testing.F) {
	const key = "untrusted comment: minisign public key A4A9D1618A68824E\nRWROgmiKYdGppGQzke7Nq1Pl9uaFhVti0n6DInX5Qf0RqFMmfJTxpNaK\n"
	f.Add(key, "untrusted comment: signature from minisign secret key\n"+
		"RUROgmiKYdGppK+HNZ7YdY8Ez6vjG0qgsVq/tz8bQKTOMihEZqKJ1+H1iRIr8rEUbRJgUAFXrXh3jgmR4bdcFqCnovtJ4naaiA0=\n"+
		"trusted comment: file:f trusted\n"+
		"TUP/DlDNs0bpRakltbWq3Mr4WrddeYF0vCW0TFEmaRossAAjJl7AXjg2ratEl/Lh90EgsXMuHE2uqUbMBBJJDQ==\n")
	pinned, err := parseMinisignKey([]byte(key))
	require.NoError(f, err)
	ring := &Keyring{minisign: []minisignKey{pinned}}
	f.Fuzz(func(t *testing.T, pub, sig string) {
		if k, err := parseMinisignKey([]byte(pub)); err == nil && len(k.key) != 32 {
			t.Fatalf("%q has a key of %d bytes", pub, len(k.key))
		}
		v, err := ring.NewVerifier([]byte(sig))
		if err != nil {
			return
		}
		_, _ = v.Write([]byte("hello\n"))
		if s, err := v.Close(); err == nil && s.Comment != "file:f trusted" {
			t.Fatalf("%q is taken for %+v", sig, s)
		}
	})
}
