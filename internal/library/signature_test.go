package library

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// minisigned is a pinned key, and what signs by it.
func minisigned(t *testing.T) (key string, sign func(content []byte) []byte) {
	dir := t.TempDir()
	key, secret := filepath.Join(dir, "k.pub"), filepath.Join(dir, "k.key")
	out, err := exec.Command("minisign", "-G", "-W", "-p", key, "-s", secret).CombinedOutput()
	require.NoError(t, err, string(out))
	return key, func(content []byte) []byte {
		file := filepath.Join(dir, "content")
		require.NoError(t, os.WriteFile(file, content, 0o600))
		out, err := exec.Command("minisign", "-S", "-s", secret, "-m", file).CombinedOutput()
		require.NoError(t, err, string(out))
		sig, err := os.ReadFile(file + ".minisig")
		require.NoError(t, err)
		return sig
	}
}

// TestSignedAgain: what was signed, the image or its sums, is compared with that signature
// again when a damaged image is downloaded anew.
func TestSignedAgain(t *testing.T) {
	b := disc(t, "DEBIAN")
	key, sign := minisigned(t)
	sums := []byte(hexOf(b) + "  debian.iso\n")
	s := newServer(t, map[string][]byte{
		"/debian.iso": b, "/debian.iso.minisig": sign(b), "/SHA256SUMS": sums, "/SHA256SUMS.minisig": sign(sums),
	})
	for name, q := range map[string]Request{
		"the image":                     {Signature: s.URL + "/debian.iso.minisig"},
		"the image, and a sum":          {Signature: s.URL + "/debian.iso.minisig", Checksum: hexOf(b)},
		"the image, and sums":           {Signature: s.URL + "/debian.iso.minisig", Checksum: "file:" + s.URL + "/SHA256SUMS"},
		"the sums":                      {Signature: s.URL + "/SHA256SUMS.minisig", Checksum: "file:" + s.URL + "/SHA256SUMS"},
		"the sums that the client has":  {SignatureData: sign(sums), SignatureOf: "sums", Checksum: "file:SHA256SUMS", Sums: string(sums)},
		"the image, the client's files": {SignatureData: sign(b), SignatureOf: "image", Checksum: "file:SHA256SUMS", Sums: string(sums)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Verify, o.Keys = VerifySignature, []string{key} })
			q.Name, q.URLs = "debian", []string{s.URL + "/debian.iso"}
			i := r.add(q)
			require.Equal(t, wire.ImageReady, i.State, i.Failure)
			require.NotEmpty(t, i.Signer)
			r.rot("debian")
			i, err := r.Retry("", "debian")
			require.NoError(t, err)
			i = r.ended(i)
			require.Equal(t, wire.ImageReady, i.State, i.Failure)
			require.NotEmpty(t, i.Signer)
		})
	}
}

// TestSignatureOfNothing: a signature that nothing is compared with is refused.
func TestSignatureOfNothing(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	r := newRig(t)
	for _, of := range []string{"sums", "elsewhere"} {
		i := r.add(Request{Name: of, URLs: []string{s.URL + "/debian.iso"}, Checksum: hexOf(b), SignatureData: []byte("x"), SignatureOf: of})
		require.Equal(t, wire.ImageFailed, i.State)
		require.Equal(t, BadRequest, i.Failure.Code)
	}
}
