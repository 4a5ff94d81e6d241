package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sample is a journal's text, and the state after each number of its records (index 0: after the header).
func sample(t testing.TB) (text []byte, states []map[string]string) {
	t.Helper()
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	states = append(states, contents(j))
	for i := range 6 {
		require.NoError(t, j.Put(fmt.Sprintf("drive/vm%d/cd0", i%3), map[string]any{"loaded": i, "q": `"},{`}))
		states = append(states, contents(j))
	}
	require.NoError(t, j.Delete("drive/vm1/cd0"))
	states = append(states, contents(j))
	require.NoError(t, j.Put("last", "one"))
	states = append(states, contents(j))
	require.NoError(t, j.Close())
	text, err := os.ReadFile(j.path)
	require.NoError(t, err)
	return text, states
}

func TestPowerFailureAtEveryByte(t *testing.T) {
	text, states := sample(t)
	path := filepath.Join(t.TempDir(), "state")
	for cut := range len(text) + 1 {
		require.NoError(t, os.WriteFile(path, text[:cut], 0o600))
		j, err := Open(path, nil)
		require.NoError(t, err, "cut at %d", cut)
		whole := bytes.Count(text[:cut], []byte("\n"))
		require.Equal(t, states[max(whole-1, 0)], contents(j), "cut at %d", cut)
		require.Equal(t, cut > 0 && text[cut-1] != '\n', j.Stats().DroppedTorn, "cut at %d", cut)
		if cut%7 == 0 { // and it goes on from there
			require.NoError(t, j.Put("more", cut))
			want := contents(j)
			j = reopened(t, j)
			require.Equal(t, want, contents(j))
		}
		require.NoError(t, j.Close())
	}
}

// Zeroes in place of what did not reach the disk, up to the end of the file or up to the newline.
func TestPowerFailureThatLeavesHoles(t *testing.T) {
	text, states := sample(t)
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	path := filepath.Join(t.TempDir(), "state")
	for at := last; at < len(text); at++ {
		for _, upTo := range []int{len(text), len(text) - 1} {
			torn := bytes.Clone(text)
			clear(torn[at:max(at, upTo)])
			if bytes.Equal(torn, text) {
				continue
			}
			require.NoError(t, os.WriteFile(path, torn, 0o600))
			j := open(t, path, nil)
			require.Equal(t, states[len(states)-2], contents(j))
			require.NoError(t, j.Close())
		}
	}
}

// A write of several lines can lose any part of itself.
func TestTornBatch(t *testing.T) {
	table := castagnoli()
	text := appendHeader(nil, table, 5)
	text = appendRecord(text, table, record{seq: 6, with: 6, key: "a", value: json.RawMessage("1")})
	start := len(text)
	for i := range uint64(4) {
		text = appendRecord(text, table, record{seq: 7 + i, with: 7, key: fmt.Sprint("b", i), value: json.RawMessage("1")})
	}
	path := filepath.Join(t.TempDir(), "state")
	for at := start; at < len(text)-70; at++ {
		torn := bytes.Clone(text)
		clear(torn[at : at+12])
		require.NoError(t, os.WriteFile(path, torn, 0o600))
		j := open(t, path, nil)
		assert.True(t, j.Stats().DroppedTorn)
		assert.Equal(t, 1+bytes.Count(text[start:at], []byte("\n")), j.Stats().Live)
		require.NoError(t, j.Put("c", 1))
		require.NoError(t, j.Close())
	}
	// With a line behind it that was written later, the same hole is damage.
	text = appendRecord(text, table, record{seq: 11, with: 11, key: "c", value: json.RawMessage("1")})
	clear(text[start+20 : start+32])
	require.NoError(t, os.WriteFile(path, text, 0o600))
	_, err := Open(path, nil)
	var damage *DamageError
	require.ErrorAs(t, err, &damage)
	assert.Equal(t, 3, damage.Line)
}

func TestDamageInsideIsRefusedAndRepaired(t *testing.T) {
	text, _ := sample(t)
	lines := strings.SplitAfter(string(text), "\n")[:9]
	table := castagnoli()
	join := func(parts ...[]string) string {
		var all []string
		for _, p := range parts {
			all = append(all, p...)
		}
		return strings.Join(all, "")
	}
	cases := map[string]struct {
		text   string
		line   int
		reason string
		lost   []Loss
		keys   int // after the repair
	}{
		"a flipped bit":      {strings.Replace(join(lines), `"loaded":3`, `"loaded":7`, 1), 5, "checksum", []Loss{{Line: 5, Key: "drive/vm0/cd0", OlderValue: true}}, 3},
		"a missing line":     {join(lines[:3], lines[4:]), 4, "sequence number is 5 after 3", []Loss{{Line: 4}}, 3},
		"a line twice":       {join(lines[:4], lines[3:]), 5, "sequence number is 4 after 4", []Loss{{Line: 5, Key: "drive/vm2/cd0"}}, 3},
		"not JSON":           {join(lines[:2], []string{"hello\n"}, lines[2:]), 3, "not a record", []Loss{{Line: 3}}, 3},
		"an empty line":      {join(lines[:2], []string{"\n"}, lines[2:]), 3, "not a record", []Loss{{Line: 3}}, 3},
		"a huge line":        {join(lines[:2], []string{strings.Repeat("x", 3*maxLine) + "\n"}, lines[2:]), 3, "more than any record", []Loss{{Line: 3}}, 3},
		"no header":          {join(lines[1:]), 1, "not the header", nil, 3},
		"a damaged header":   {strings.Replace(join(lines), "trayd", "troyd", 1), 1, "not the beginning", []Loss{{Line: 1}}, 3},
		"two headers":        {join(lines[:2], []string{string(appendHeader(nil, table, 3))}, lines[3:]), 3, "second header", []Loss{{Line: 3}}, 3},
		"a gap at the end":   {join(lines[:7], lines[8:]), 8, "sequence number is 9 after 7", []Loss{{Line: 8}}, 4},
		"two bad at the end": {join(lines[:8], []string{"x\n", "y"}), 9, "not a record", []Loss{{Line: 9}, {Line: 10}}, 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			require.NoError(t, os.WriteFile(path, []byte(c.text), 0o600))
			_, err := Open(path, nil)
			var damage *DamageError
			require.ErrorAs(t, err, &damage)
			assert.Equal(t, c.line, damage.Line)
			assert.Contains(t, damage.Reason, c.reason)

			values, report, err := Read(path)
			assert.ErrorAs(t, err, &damage)
			assert.Len(t, values, c.keys)
			assert.Equal(t, c.line, report.Damage.Line)
			left, _ := os.ReadFile(path)
			require.Equal(t, c.text, string(left), "reading changes nothing")

			report, err = Repair(path)
			require.NoError(t, err)
			kept, err := os.ReadFile(report.Copy)
			require.NoError(t, err)
			assert.Equal(t, c.text, string(kept))
			require.Len(t, report.Lost, len(c.lost))
			for i, l := range c.lost {
				got := report.Lost[i]
				assert.NotEmpty(t, got.Reason)
				got.Reason, got.before = "", 0
				assert.Equal(t, l, got)
			}
			j := open(t, path, nil)
			assert.Equal(t, c.keys, len(contents(j)))
			assert.Greater(t, j.Stats().Sequence, report.LastSequence, "numbers are never used twice")
			require.NoError(t, j.Close())
			again, err := Repair(path)
			require.NoError(t, err)
			assert.Empty(t, again.Copy, "nothing left to do")
		})
	}
}

func TestRepairOfATornFileKeepsItToo(t *testing.T) {
	text, states := sample(t)
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	require.NoError(t, os.WriteFile(path+".damaged-20261121T000000Z", nil, 0o600))
	report, err := Check(path)
	require.NoError(t, err)
	assert.True(t, report.Torn)
	assert.Positive(t, report.TornBytes)
	report, err = Repair(path)
	require.NoError(t, err)
	assert.NotEmpty(t, report.Copy)
	assert.Equal(t, states[len(states)-2], contents(open(t, path, nil)))
}

func FuzzReplay(f *testing.F) {
	text, _ := sample(f)
	f.Add(text)
	f.Add(text[:len(text)-9])
	f.Add(bytes.Replace(text, []byte("loaded"), []byte("leaded"), 1))
	f.Add([]byte(nil))
	f.Add([]byte("\n\n\n"))
	f.Add([]byte(`{"seq":1,"key":"","value":{"format":"trayd-`))
	f.Add([]byte(`{"seq":18446744073709551615,"key":"\ud800","value":1,"with":3,"crc":"00000000"}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := readJournal("x", bytes.NewReader(text))
		if err != nil {
			return
		}
		if p.size != int64(len(text)) || p.end > p.size {
			t.Fatalf("%d bytes read as %d, good up to %d", len(text), p.size, p.end)
		}
		if p.damage != nil {
			return
		}
		q, err := readJournal("x", bytes.NewReader(text[:p.end]))
		if err != nil || q.damage != nil || q.torn || q.next != p.next || len(q.entries) != len(p.entries) {
			t.Fatalf("what is kept of %q is not what was read", text)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(uint64(3), uint64(3), "drive/vm1/cd0", []byte(`{"a":[1,2]}`))
	f.Add(uint64(9), uint64(8), `"\`, []byte(`12`))
	f.Fuzz(func(t *testing.T, seq, with uint64, key string, value []byte) {
		if checkKey(key) != nil || seq == 0 || with == 0 || with > seq || len(value) > MaxValue ||
			!json.Valid(value) || bytes.ContainsAny(value, "\n\r\t ") {
			return
		}
		want := record{seq: seq, with: with, key: key, value: value}
		line := appendRecord(nil, castagnoli(), want)
		if !json.Valid(line) {
			t.Fatalf("not JSON: %s", line)
		}
		got, err := parseRecord(bytes.TrimSuffix(line, []byte("\n")), castagnoli())
		if err != nil || got.seq != seq || got.with != with || got.key != key || !bytes.Equal(got.value, value) {
			t.Fatalf("%s: %+v, %v", line, got, err)
		}
	})
}
