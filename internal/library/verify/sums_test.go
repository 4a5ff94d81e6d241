package verify

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// run runs a tool in a directory and returns what it prints.
func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	var says bytes.Buffer
	c.Stderr = &says
	out, err := c.Output()
	require.NoError(t, err, "%s %v: %s", name, args, says.String())
	return out
}

func TestSumsFilesOfRealTools(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o700))
	names := []string{"a.iso", "with space.iso", "paren (2).iso", "new\nline.iso", `back\slash.iso`, "sub/deep.iso", "-dash.iso"}
	for i, n := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, n), []byte(strings.Repeat(n, i+1)), 0o600))
	}
	for title, command := range map[string][]string{
		"sha256sum":        {"sha256sum", "--"},
		"sha256sum -b":     {"sha256sum", "-b", "--"},
		"sha256sum --tag":  {"sha256sum", "--tag", "--"},
		"sha512sum":        {"sha512sum", "--"},
		"sha384sum --tag":  {"sha384sum", "--tag", "--"},
		"sha224sum":        {"sha224sum", "--"},
		"cksum -a sha256":  {"cksum", "-a", "sha256", "--"},
		"cksum --untagged": {"cksum", "--untagged", "-a", "sha512", "--"},
	} {
		t.Run(title, func(t *testing.T) {
			sums := run(t, dir, command[0], append(command[1:], names...)...)
			for i, n := range names {
				for _, text := range [][]byte{sums, bytes.ReplaceAll(sums, []byte("\n"), []byte("\r\n"))} {
					c, err := FindSum(text, filepath.Base(n), Strong)
					require.NoError(t, err, n)
					h := c.Algorithm.New()
					_, _ = h.Write([]byte(strings.Repeat(n, i+1)))
					require.NoError(t, c.Check(h), n)
				}
			}
		})
	}
}

func TestFindSum(t *testing.T) {
	sum := Checksum{Algorithm: SHA256, Hex: hex64}
	other := strings.Repeat("1", 64)
	for _, row := range []struct {
		title, text string
		want        Checksum
	}{
		{"a sum alone", hex64 + "\n", sum},
		{"a sum alone, upper case, no new line", strings.ToUpper(hex64), sum},
		{"comments and empty lines", "# my.iso: 1 byte\n\n" + hex64 + "  my.iso\n", sum},
		{"CRLF", hex64 + " *my.iso\r\n", sum},
		{"a tab", hex64 + "\tmy.iso\n", sum},
		{"one space", hex64 + " my.iso\n", sum},
		{"with a path", hex64 + "  ./isos/my.iso\n", sum},
		{"OpenSSL", "SHA2-256(my.iso)= " + hex64 + "\n", sum},
		{"old OpenSSL", "SHA256(my.iso)= " + hex64 + "\n", sum},
		{"among others", other + "  your.iso\n" + hex64 + "  my.iso\n" + other + "  their.iso\n", sum},
		{"twice the same", hex64 + "  my.iso\n" + hex64 + "  ./my.iso\n", sum},
		{"several algorithms", "MD5 (my.iso) = " + hex32 + "\nSHA512 (my.iso) = " + hex128 + "\nSHA256 (my.iso) = " + hex64 + "\n", Checksum{Algorithm: SHA512, Hex: hex128}},
		{"algorithms by length", hex32 + "  my.iso\n" + hex64 + "  my.iso\n" + hex40 + "  my.iso\n", sum},
		{"one that isn't known", "BLAKE2b (my.iso) = " + hex128 + "\nSHA256 (my.iso) = " + hex64 + "\n", sum},
	} {
		t.Run(row.title, func(t *testing.T) {
			got, err := FindSum([]byte(row.text), "my.iso", Strong)
			require.NoError(t, err)
			require.Equal(t, row.want, got)
		})
	}
}

func TestFindSumRefuses(t *testing.T) {
	other := strings.Repeat("1", 64)
	var many strings.Builder
	for i := range 12 {
		fmt.Fprintf(&many, "%064x  disc-%d.iso\n", i, i)
	}
	for _, row := range []struct {
		title, text string
		reason      Reason
		says        string
	}{
		{"nothing", "", Malformed, "no checksum in the sums file"},
		{"a web page", "<!DOCTYPE html><html>Not found</html>", Malformed, `begins with "<!DOCTYPE html>`},
		{"another's", hex64 + "  your.iso\n", NotListed, `has no "my.iso", only "your.iso"`},
		{"not among many", many.String(), NotListed, `only "disc-0.iso", "disc-1.iso", "disc-2.iso", "disc-3.iso", "disc-4.iso" and 7 more`},
		{"sums alone, several", hex64 + "\n" + other + "\n", NotListed, "only sums without names"},
		{"two of one name", hex64 + "  a/my.iso\n" + other + "  b/my.iso\n", Ambiguous, `"a/my.iso" in line 1 and "b/my.iso" in line 2; give the right one as sha256:HEX`},
		{"two of one name, both ways", hex64 + "  my.iso\nSHA256 (my.iso) = " + other + "\n", Ambiguous, "two files"},
		{"a digit short", hex64[1:] + "  my.iso\n", Malformed, `line 1 of the sums file, on "my.iso": 63 hexadecimal digits`},
		{"a digit short, tagged", "SHA256 (my.iso) = " + hex64[1:], Malformed, "is not the 64 hexadecimal digits of sha256"},
		{"weak", hex32 + "  my.iso\n", Weak, "--allow-weak-checksum"},
		{"clearsigned", clearsigned + "\nHash: SHA512\n\n" + hex64 + "  my.iso\n", Unverified, "has not been checked; add the signer's key to `keys`"},
		{"too long", strings.Repeat("#", MaxText+1), TooLarge, "at most 1048576 (1 MiB)"},
	} {
		t.Run(row.title, func(t *testing.T) {
			_, err := FindSum([]byte(row.text), "my.iso", Strong)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, row.reason, e.Reason)
			require.Contains(t, err.Error(), row.says)
		})
	}
	c, err := FindSum([]byte(hex32+"  my.iso\n"), "my.iso", AllowWeak)
	require.NoError(t, err)
	require.Equal(t, MD5, c.Algorithm)
}

// FuzzFindSum: whatever the text, a sum that is found is whole and stands in it.
func FuzzFindSum(f *testing.F) {
	f.Add(hex64+"  my.iso\n", "my.iso")
	f.Add(`\`+hex64+`  a\nb\\c`, "a\nb\\c")
	f.Add("SHA256 (my.iso) = "+hex64+"\r\nMD5 (my.iso) = "+hex32, "my.iso")
	f.Add(hex128, "x")
	f.Add("SHA2-512(x(y))= "+hex128, "x(y)")
	f.Fuzz(func(t *testing.T, text, name string) {
		c, err := FindSum([]byte(text), name, AllowWeak)
		if err != nil {
			return
		}
		if len(c.Hex) != c.Algorithm.digits() || c.Hex == "" || !strings.Contains(strings.ToLower(text), c.Hex) {
			t.Fatalf("%q in %q is %+v", name, text, c)
		}
	})
}
