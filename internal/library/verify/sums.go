package verify

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// clearsigned begins a text that carries its OpenPGP signature with it.
const clearsigned = "-----BEGIN PGP SIGNED MESSAGE-----"

// shown is how many of a sums file's names an error lists.
const shown = 5

// entry is one line of a sums file.
type entry struct {
	sum  Checksum
	name string // as it stands there; empty for a sum alone
	bad  string // what is wrong with the sum
	line int    // counted from 1
}

// FindSum finds the sum of a file in a sums file of sha256sum(1) and its kin, in the lines
// of --tag (BSD), in those of `openssl dgst`, or as a sum alone. Only the last part of a
// path counts, in name and in the file. Of several algorithms the strongest is taken.
//
// A clearsigned text is refused: Keyring.VerifySums gives what is in it.
func FindSum(sums []byte, name string, strength Strength) (Checksum, error) {
	if err := bounded("the sums file", sums); err != nil {
		return Checksum{}, err
	}
	if bytes.Contains(sums, []byte(clearsigned)) {
		return Checksum{}, refuse(Unverified, "add the signer's key to `keys` in [library], so that it is checked",
			"the sums file is signed, and its signature has not been checked")
	}
	entries := parseSums(sums)
	if len(entries) == 0 {
		return Checksum{}, refuse(Malformed, "name the file that sha256sum made", "there is no checksum in the sums file, which begins with %.60q", string(sums[:min(len(sums), 60)]))
	}
	if len(entries) == 1 && entries[0].name == "" {
		return choose(entries, name, strength)
	}
	base := path.Base(name)
	var ours []entry
	for _, e := range entries {
		if e.name != "" && path.Base(e.name) == base {
			ours = append(ours, e)
		}
	}
	if len(ours) == 0 {
		return Checksum{}, refuse(NotListed, "is it of another directory or version?", "the sums file has no %q, only %s", base, listed(entries))
	}
	return choose(ours, base, strength)
}

// choose takes the strongest sum of entries that are all of one file.
func choose(entries []entry, name string, strength Strength) (Checksum, error) {
	byAlgorithm := make(map[Algorithm]entry)
	var best Checksum
	for _, e := range entries {
		if e.bad != "" {
			return Checksum{}, refuse(Malformed, "get the sums file again", "line %d of the sums file, on %q: %s", e.line, name, e.bad)
		}
		if first, there := byAlgorithm[e.sum.Algorithm]; there && first.sum != e.sum {
			return Checksum{}, refuse(Ambiguous, "give the right one as "+string(e.sum.Algorithm)+":HEX",
				"the sums file has two files %q: %q in line %d and %q in line %d", name, first.name, first.line, e.name, e.line)
		}
		byAlgorithm[e.sum.Algorithm] = e
		if e.sum.Algorithm.digits() > best.Algorithm.digits() {
			best = e.sum
		}
	}
	return best, strength.check(best.Algorithm)
}

// listed names the first files of a sums file.
func listed(entries []entry) string {
	var names []string
	for _, e := range entries {
		if n := path.Base(e.name); e.name != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return "sums without names"
	}
	more := ""
	if len(names) > shown {
		more = fmt.Sprintf(" and %d more", len(names)-shown)
		names = names[:shown]
	}
	for i, n := range names {
		names[i] = fmt.Sprintf("%.100q", n)
	}
	return strings.Join(names, ", ") + more
}

// parseSums reads the lines that have a sum of an algorithm we know. Comments, and sums of
// other algorithms, are none of them.
func parseSums(sums []byte) []entry {
	var entries []entry
	line := 0
	for text := range strings.SplitSeq(string(sums), "\n") {
		line++
		text = strings.TrimSuffix(text, "\r")
		if strings.TrimSpace(text) == "" || strings.HasPrefix(text, "#") {
			continue
		}
		escaped := strings.HasPrefix(text, `\`) // of sha256sum, for names with a new line
		if escaped {
			text = text[1:]
		}
		e, ok := tagged(text)
		if !ok {
			e, ok = untagged(text)
		}
		if !ok {
			continue
		}
		if escaped {
			e.name = unescape(e.name)
		}
		e.line = line
		entries = append(entries, e)
	}
	return entries
}

// tagged is `SHA256 (name) = HEX`, or OpenSSL's `SHA2-256(name)= HEX`.
func tagged(text string) (entry, bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return entry{}, false
	}
	a, ok := byName(strings.TrimSpace(text[:open]))
	value, assigned := strings.CutPrefix(strings.TrimSpace(text[end+1:]), "=")
	if !ok || !assigned {
		return entry{}, false
	}
	e := entry{name: text[open+1 : end]}
	if value = strings.TrimSpace(value); len(value) != a.digits() || !isHex(value) {
		e.bad = fmt.Sprintf("%.40q is not the %d hexadecimal digits of %s", value, a.digits(), a)
	}
	e.sum = Checksum{Algorithm: a, Hex: strings.ToLower(value)}
	return e, true
}

// untagged is `HEX  name`, `HEX *name`, or HEX alone.
func untagged(text string) (entry, bool) {
	text = strings.TrimLeft(text, " \t")
	value, name := text, ""
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		value, name = text[:i], text[i+1:]
		// The second character between them says how the file was read; others write tabs.
		if name = strings.TrimLeft(name, " \t"); name != "" {
			name = strings.TrimPrefix(name, "*")
		}
	}
	const shortest = 32 // digits, of MD5; what is shorter is a word, or a CRC
	if !isHex(value) || len(value) < shortest-1 {
		return entry{}, false
	}
	e := entry{name: name}
	a, ok := byDigits(len(value))
	if !ok {
		e.bad = hexadecimal(len(value)) + ": sha256 has 64, sha384 96, sha512 128"
	}
	e.sum = Checksum{Algorithm: a, Hex: strings.ToLower(value)}
	return e, true
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// unescape undoes what sha256sum does to a name of a line that begins with a backslash.
func unescape(name string) string {
	return strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r").Replace(name)
}
