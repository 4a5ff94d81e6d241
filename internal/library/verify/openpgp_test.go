package verify

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// gnupg is a GnuPG home directory.
type gnupg struct {
	t   *testing.T
	dir string
}

func newGnuPG(t *testing.T) gnupg {
	dir, err := os.MkdirTemp("", "gnupg-") // short: the agent's socket is in it
	require.NoError(t, err)
	g := gnupg{t, dir}
	t.Cleanup(func() {
		run(t, "/", "gpgconf", "--homedir", dir, "--kill", "all")
		require.NoError(t, os.RemoveAll(dir))
	})
	return g
}

func (g gnupg) run(args ...string) []byte {
	g.t.Helper()
	return run(g.t, g.dir, "gpg", append([]string{"--homedir", g.dir, "--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
}

func (g gnupg) newKey(user, algorithm, usage, expire string, options ...string) {
	g.t.Helper()
	g.run(append(options, "--quick-generate-key", user, algorithm, usage, expire)...)
}

// file writes a file that gpg can be told of.
func (g gnupg) file(name, content string) string {
	p := filepath.Join(g.dir, name)
	require.NoError(g.t, os.WriteFile(p, []byte(content), 0o600))
	return p
}

func (g gnupg) sign(user, content string, args ...string) []byte {
	g.t.Helper()
	return g.run(append(args, "--local-user", user, "--output", "-", "--detach-sign", g.file("signed", content))...)
}

func (g gnupg) keyring(users ...string) *Keyring {
	g.t.Helper()
	k, err := LoadKeys([]string{g.file("keys.asc", string(g.run(append([]string{"--armor", "--export"}, users...)...)))})
	require.NoError(g.t, err)
	return k
}

func TestOpenPGPSignsAnImage(t *testing.T) {
	g := newGnuPG(t)
	for _, kind := range []string{"ed25519", "rsa2048", "nistp256"} {
		t.Run(kind, func(t *testing.T) {
			user := kind + "@example.com"
			g.newKey("Builder <"+user+">", kind, "sign", "never")
			armored := g.keyring(user)
			binary, err := LoadKeys([]string{g.file("keys.gpg", string(g.run("--export", user)))})
			require.NoError(t, err)
			for name, sig := range map[string][]byte{
				"binary":  g.sign(user, "the\nimage\n"),
				"armored": g.sign(user, "the\nimage\n", "--armor"),
				"text":    g.sign(user, "the\nimage\n", "--textmode"),
				"sha512":  g.sign(user, "the\nimage\n", "--digest-algo", "SHA512"),
			} {
				for _, k := range []*Keyring{armored, binary} {
					s, err := stream(t, k, sig, "the\nimage\n")
					require.NoError(t, err, name)
					require.Equal(t, OpenPGP, s.Kind)
					require.Equal(t, "Builder <"+user+">", s.Identity)
					require.Len(t, s.KeyID, 40)
					_, err = stream(t, k, sig, "the\nimagE\n")
					requireReason(t, WrongSignature, err)
					require.Contains(t, err.Error(), s.KeyID)
				}
			}
		})
	}
}

func TestASubkeySigns(t *testing.T) {
	g := newGnuPG(t)
	g.newKey("Offline <o@example.com>", "ed25519", "cert", "never")
	primary := fingerprints(g, "o@example.com")[0]
	g.run("--quick-add-key", primary, "ed25519", "sign", "never")
	s, err := stream(t, g.keyring("o@example.com"), g.sign("o@example.com", "x"), "x")
	require.NoError(t, err)
	require.Equal(t, primary, s.KeyID, "the primary key is who it is")

	sub := fingerprints(g, "o@example.com")[1]
	sig := g.sign("o@example.com", "x")
	// gpg asks for the reason, and for a word on it.
	revokeSubkey(t, g, "o@example.com")
	_, err = stream(t, g.keyring("o@example.com"), sig, "x")
	e := requireReason(t, RevokedKey, err)
	require.Equal(t, sub, e.KeyID)
}

func fingerprints(g gnupg, user string) []string {
	var all []string
	for line := range strings.Lines(string(g.run("--with-colons", "--list-keys", user))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			all = append(all, f[9])
		}
	}
	return all
}

func revokeSubkey(t *testing.T, g gnupg, user string) {
	answers := g.file("answers", "key 1\nrevkey\ny\n0\n\ny\nsave\n")
	run(t, g.dir, "sh", "-c", fmt.Sprintf("gpg --homedir %s --quiet --no-tty --pinentry-mode loopback --passphrase '' --command-fd 0 --edit-key %s <%s", g.dir, user, answers))
}

func TestSumsFilesThatAreSigned(t *testing.T) {
	g := newGnuPG(t)
	g.newKey("Release <r@example.com>", "ed25519", "sign", "never")
	k := g.keyring("r@example.com")
	sums := hex64 + "  my.iso\n- dashed\n"

	text, s, err := k.VerifySums([]byte(sums), g.sign("r@example.com", sums, "--armor"))
	require.NoError(t, err)
	require.Equal(t, sums, string(text))
	require.Equal(t, "Release <r@example.com>", s.Identity)

	clear := string(g.run("--local-user", "r@example.com", "--output", "-", "--clearsign", g.file("sums", sums)))
	for name, whole := range map[string]string{"as it is": clear, "with a word around": hex128 + "  my.iso\n" + clear + hex128 + "  my.iso\n", "CRLF": strings.ReplaceAll(clear, "\n", "\r\n")} {
		text, _, err = k.VerifySums([]byte(whole), nil)
		require.NoError(t, err, name)
		c, err := FindSum(text, "my.iso", Strong)
		require.NoError(t, err, name)
		require.Equal(t, hex64, c.Hex, "only what is signed counts")
	}
	_, _, err = k.VerifySums([]byte(strings.Replace(clear, "0d0d", "0e0e", 1)), nil)
	requireReason(t, WrongSignature, err)
	_, _, err = k.VerifySums([]byte(clear[:len(clear)/2]), nil)
	requireReason(t, Malformed, err)
	_, _, err = k.VerifySums([]byte(sums), nil)
	requireReason(t, Unverified, err)
	_, err = FindSum([]byte(clear), "my.iso", Strong)
	requireReason(t, Unverified, err)
}

func TestOneOfSeveralSignersIsEnough(t *testing.T) {
	g := newGnuPG(t)
	g.newKey("A <a@example.com>", "ed25519", "sign", "never")
	g.newKey("B <b@example.com>", "ed25519", "sign", "never")
	both := append(g.sign("a@example.com", "x"), g.sign("b@example.com", "x")...)
	for _, user := range []string{"a@example.com", "b@example.com"} {
		s, err := stream(t, g.keyring(user), both, "x")
		require.NoError(t, err)
		require.Contains(t, s.Identity, user)
	}
	// Of a pinned key that signed another file and one that signed this, this counts.
	mixed := append(g.sign("a@example.com", "y"), g.sign("b@example.com", "x")...)
	s, err := stream(t, g.keyring("a@example.com", "b@example.com"), mixed, "x")
	require.NoError(t, err)
	require.Contains(t, s.Identity, "b@example.com")
}

func TestSeveralKeysInOneFile(t *testing.T) {
	g := newGnuPG(t)
	text := "Our builders:\n"
	for _, name := range []string{"a", "b", "c"} {
		g.newKey(name+" <"+name+"@example.com>", "ed25519", "sign", "never")
		text += "\n" + string(g.run("--armor", "--export", name+"@example.com"))
	}
	k, err := LoadKeys([]string{g.file("all.asc", text)})
	require.NoError(t, err)
	require.Equal(t, 3, k.Len())
	_, err = stream(t, k, g.sign("c@example.com", "x"), "x")
	require.NoError(t, err)
	_, err = LoadKeys([]string{g.file("all.asc", text+armorBegin+"\n\nxxxx\n")})
	require.ErrorContains(t, err, "no OpenPGP public key")
}

func TestOpenPGPKeysThatDontCount(t *testing.T) {
	g := newGnuPG(t)
	t.Run("not pinned", func(t *testing.T) {
		g.newKey("A <a@example.com>", "ed25519", "sign", "never")
		g.newKey("B <b@example.com>", "ed25519", "sign", "never")
		_, err := g.keyring("a@example.com").NewVerifier(g.sign("b@example.com", "x"))
		e := requireReason(t, UnknownKey, err)
		require.Equal(t, fingerprints(g, "b@example.com")[0], e.KeyID)
		require.Contains(t, err.Error(), e.KeyID)
	})
	t.Run("expired", func(t *testing.T) {
		g.newKey("Old <old@example.com>", "ed25519", "sign", "1y", "--faked-system-time", "20200101T000000")
		_, err := g.keyring("old@example.com").NewVerifier(g.sign("old@example.com", "x", "--faked-system-time", "20200102T000000"))
		requireReason(t, ExpiredKey, err)
		require.ErrorContains(t, err, "has expired")
	})
	t.Run("revoked", func(t *testing.T) {
		g.newKey("Lost <lost@example.com>", "ed25519", "sign", "never")
		sig := g.sign("lost@example.com", "x")
		print := fingerprints(g, "lost@example.com")[0]
		rev, err := os.ReadFile(filepath.Join(g.dir, "openpgp-revocs.d", print+".rev"))
		require.NoError(t, err)
		g.run("--import", g.file("rev", strings.Replace(string(rev), ":-----BEGIN", "-----BEGIN", 1)))
		_, err = g.keyring("lost@example.com").NewVerifier(sig)
		requireReason(t, RevokedKey, err)
	})
	t.Run("an expired signature", func(t *testing.T) {
		g.newKey("Brief <brief@example.com>", "ed25519", "sign", "never", "--faked-system-time", "20200101T000000")
		sig := g.sign("brief@example.com", "x", "--faked-system-time", "20200102T000000", "--default-sig-expire", "1d")
		_, err := g.keyring("brief@example.com").NewVerifier(sig)
		requireReason(t, ExpiredSignature, err)
	})
	t.Run("a weak hash", func(t *testing.T) {
		g.newKey("RSA <rsa@example.com>", "rsa2048", "sign", "never")
		k := g.keyring("rsa@example.com")
		for _, algorithm := range []string{"SHA1", "MD5", "RIPEMD160"} {
			_, err := k.NewVerifier(g.sign("rsa@example.com", "x", "--digest-algo", algorithm, "--allow-weak-digest-algos"))
			requireReason(t, Weak, err)
		}
	})
	t.Run("a key that signs, too", func(t *testing.T) {
		g.newKey("Cert <cert@example.com>", "ed25519", "cert,sign", "never")
		k := g.keyring("cert@example.com")
		_, err := stream(t, k, g.sign("cert@example.com", "x"), "x")
		require.NoError(t, err)
	})
	t.Run("a private key", func(t *testing.T) {
		for _, args := range [][]string{{"--armor"}, nil} {
			_, err := LoadKeys([]string{g.file("secret", string(g.run(append(args, "--export-secret-keys", "a@example.com")...)))})
			require.ErrorContains(t, err, "it is a private key; pin the public key")
		}
	})
}
