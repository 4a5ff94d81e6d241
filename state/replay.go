package state

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// An entry is the current value of a key.
type entry struct {
	value json.RawMessage // never changed in place: snapshots share it
	seq   uint64
}

// A replay reads a journal from its beginning and decides what it says, line by line. It touches nothing: the callers
// open, check, repair or show on the ground of it.
//
// A crash leaves a prefix of what was written, or holes in the last write alone, since every write waits until the
// one before it is durable. So a line that is not intact is at first only a suspect. It is the torn tail when it is
// the last line, or when the intact lines behind it say that they were written together with it. It is damage when a
// line behind it proves that it had been durable.
type replay struct {
	path    string
	table   *crc32.Table
	entries map[string]entry

	lines   int    // seen
	records int    // intact and counted, without the header
	first   uint64 // sequence number of the first intact line
	next    uint64 // sequence number that the next line must have; 0 before the first intact one
	end     int64  // offset behind the last line that counts
	size    int64  // bytes of the whole file

	suspects []suspect // lines that are not intact, while they may still be the torn tail
	behind   []placed  // intact lines behind the first suspect
	torn     bool
	damage   *DamageError // the first
	lost     []Loss
}

// A suspect is a line that is not intact.
type suspect struct {
	line   int
	offset int64
	key    string // as far as it can be read
	reason string
}

// A placed record knows its line number.
type placed struct {
	record
	line int
}

// readJournal replays r. The error is one of reading, or a VersionError; damage is in the result.
func readJournal(path string, r io.Reader) (*replay, error) {
	p := &replay{path: path, table: castagnoli(), entries: map[string]entry{}}
	in := bufio.NewReaderSize(r, maxLine+1)
	for {
		text, err := in.ReadSlice('\n')
		length := int64(len(text))
		tooLong := false
		head := text
		for errors.Is(err, bufio.ErrBufferFull) {
			if !tooLong {
				head, tooLong = bytes.Clone(text[:2*MaxKey]), true
			}
			text, err = in.ReadSlice('\n')
			length += int64(len(text))
		}
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("state: %s: %w", path, err)
		}
		if length > 0 {
			if verr := p.line(head, length, tooLong, err == nil); verr != nil {
				return nil, verr
			}
		}
		if err == io.EOF {
			p.finish()
			return p, nil
		}
	}
}

// line takes the next line. Only a format from the future is an error.
func (p *replay) line(text []byte, length int64, tooLong, terminated bool) error {
	p.lines++
	offset := p.size
	p.size += length
	text = bytes.TrimSuffix(text, []byte("\n"))
	var rec record
	var err error
	switch {
	case tooLong:
		err = fmt.Errorf("it has %d bytes, more than any record", length)
	case !terminated:
		err = errors.New("it has no end")
	default:
		rec, err = parseRecord(text, p.table)
	}
	if err != nil {
		p.suspect(suspect{line: p.lines, offset: offset, key: guessKey(text), reason: err.Error()}, text, length)
		return nil
	}
	if rec.key == "" && p.next == 0 {
		if err := checkHeader(p.path, rec.value); err != nil {
			return err
		}
	}
	p.intact(placed{record: rec, line: p.lines})
	return nil
}

// suspect takes a line that is not intact.
func (p *replay) suspect(s suspect, text []byte, length int64) {
	switch {
	case p.damage != nil:
		p.lose(s.line, s.key, s.reason)
	case s.line == 1 && !tornHeader(text, length):
		// Nothing tears the first line in any other way, so this is damage, or another program's file.
		p.condemn(s.line, "it is not the beginning of a journal: "+s.reason)
		p.lose(s.line, s.key, s.reason)
	default:
		p.suspects = append(p.suspects, s)
	}
}

// intact takes an intact line.
func (p *replay) intact(r placed) {
	if len(p.suspects) == 0 {
		p.count(r)
		return
	}
	r.value = bytes.Clone(r.value)
	p.behind = append(p.behind, r)
	if r.seq <= p.next || r.with > p.next {
		p.condemnSuspects()
	}
}

// count adds an intact line to the state, if it is in its place.
func (p *replay) count(r placed) {
	switch {
	case p.next == 0 && r.key != "" && p.damage == nil:
		p.condemn(r.line, "it is not the header that a journal begins with")
	case p.next == 0:
	case r.seq < p.next:
		reason := fmt.Sprintf("its sequence number is %d after %d", r.seq, p.next-1)
		p.condemn(r.line, reason)
		p.lose(r.line, r.key, reason)
		return
	case r.seq > p.next:
		p.condemn(r.line, fmt.Sprintf("its sequence number is %d after %d: lines are missing before it", r.seq, p.next-1))
		p.loseGap(r)
	}
	if r.key == "" && p.next != 0 {
		p.condemn(r.line, "it is a second header")
		p.lose(r.line, "", "a second header")
	}
	if p.next == 0 {
		p.first = r.seq
	}
	p.next = r.seq + 1
	p.end = p.size
	switch {
	case r.key == "":
	case string(r.value) == null:
		p.records++
		delete(p.entries, r.key)
	default:
		p.records++
		p.entries[r.key] = entry{value: bytes.Clone(r.value), seq: r.seq}
	}
}

// condemn notes the first damage.
func (p *replay) condemn(line int, reason string) {
	if p.damage == nil {
		p.damage = &DamageError{Path: p.path, Line: line, Reason: reason}
	}
}

// condemnSuspects turns the suspects into damage and counts the intact lines behind them.
func (p *replay) condemnSuspects() {
	p.condemn(p.suspects[0].line, p.suspects[0].reason)
	for _, s := range p.suspects {
		p.lose(s.line, s.key, s.reason)
	}
	behind := p.behind
	p.suspects, p.behind = nil, nil
	for _, r := range behind {
		p.count(r)
	}
}

// finish passes the verdict on the suspects at the end of the file.
func (p *replay) finish() {
	switch {
	case len(p.suspects) == 0:
	case len(p.suspects) == 1 || len(p.behind) > 0:
		p.torn = true
		p.end = p.suspects[0].offset
	default:
		p.condemnSuspects()
	}
	for i, l := range p.lost {
		e, ok := p.entries[l.Key]
		p.lost[i].OlderValue = ok && e.seq < l.before
	}
}

// lose notes a line that cannot be saved.
func (p *replay) lose(line int, key, reason string) {
	p.lost = append(p.lost, Loss{Line: line, Key: key, Reason: reason, before: max(p.next, 1)})
}

// loseGap notes records that are missing before r, unless damaged lines account for them already.
func (p *replay) loseGap(r placed) {
	missing := r.seq - p.next
	for _, l := range p.lost {
		if l.before == p.next {
			missing--
		}
		if missing == 0 {
			return
		}
	}
	p.lose(r.line, "", fmt.Sprintf("%d records are missing before it", missing))
}

// report is what the replay says to people.
func (p *replay) report() *Report {
	r := &Report{
		Path: p.path, Bytes: p.size, Records: p.records, Keys: len(p.entries),
		FirstSequence: p.first, Torn: p.torn, Damage: p.damage, Lost: p.lost,
	}
	if p.next > 0 {
		r.LastSequence = p.next - 1
	}
	if p.torn {
		r.TornBytes = p.size - p.end
	}
	return r
}

// checkHeader says whether this program can read what follows a header.
func checkHeader(path string, value json.RawMessage) error {
	var h header
	if err := json.Unmarshal(value, &h); err != nil || h.Format != formatName || h.Version != formatVersion {
		return &VersionError{Path: path, Format: h.Format, Version: h.Version}
	}
	return nil
}

// tornHeader says whether text can be what a crash left of a header: a prefix of one.
func tornHeader(text []byte, length int64) bool {
	if length != int64(len(text)) {
		return false
	}
	full := appendHeader(nil, castagnoli(), 1)
	start, tail, _ := bytes.Cut(full, []byte("1,"))
	rest, ok := bytes.CutPrefix(text, start)
	if !ok {
		return bytes.HasPrefix(start, text)
	}
	rest = bytes.TrimLeft(rest, "0123456789")
	rest, ok = bytes.CutPrefix(rest, []byte(","))
	if !ok {
		return len(rest) == 0
	}
	checked := tail[:len(tail)-crcLength-1+len(`,"crc":"`)]
	return bytes.HasPrefix(checked, rest) || bytes.HasPrefix(rest, checked)
}

// guessKey reads the key of a line that is not intact; empty when it cannot.
func guessKey(text []byte) string {
	_, rest, ok := bytes.Cut(text, []byte(`,"key":`))
	if !ok {
		return ""
	}
	key, _, _ := cutKey(rest)
	if checkKey(key) != nil {
		return ""
	}
	return key
}
