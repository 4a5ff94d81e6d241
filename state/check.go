package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// A Report says what a journal's file holds.
type Report struct {
	Path          string       `json:"path"`
	Bytes         int64        `json:"bytes"`          // of the file, what is lost included
	Records       int          `json:"records"`        // intact ones, without the header
	Keys          int          `json:"keys"`           // that have a value
	FirstSequence uint64       `json:"first_sequence"` // 0 when there is no intact line
	LastSequence  uint64       `json:"last_sequence"`
	Torn          bool         `json:"torn"` // a last write that a crash tore; Open drops it, nothing acknowledged is in it
	TornBytes     int64        `json:"torn_bytes,omitempty"`
	Damage        *DamageError `json:"damage,omitempty"` // the first damage; Open refuses the file
	Lost          []Loss       `json:"lost,omitempty"`   // what a repair cannot save, or could not
	Copy          string       `json:"copy,omitempty"`   // after a repair: where the original is
}

// A Loss is a line that cannot be saved.
type Loss struct {
	Line   int    `json:"line"`          // counted from 1
	Key    string `json:"key,omitempty"` // as far as the line still shows it
	Reason string `json:"reason"`
	// OlderValue says that the key has an older value in the intact lines, which is what stands after a repair.
	OlderValue bool `json:"older_value,omitempty"`

	before uint64 // sequence number that the line had, at least
}

// Check reads the journal at path and says what it finds. It needs no lock and changes nothing; beside a running
// writer it may see the end of a line that is just being written as torn. The error is that the file cannot be read,
// or a *VersionError; damage is in the Report.
func Check(path string) (*Report, error) {
	p, err := replayFile(path)
	if err != nil {
		return nil, err
	}
	return p.report(), nil
}

// Read returns the journal's state without opening it for writing, as Check does. Of a damaged file it returns what
// is intact, the Report, and the *DamageError as the error.
func Read(path string) (map[string]json.RawMessage, *Report, error) {
	p, err := replayFile(path)
	if err != nil {
		return nil, nil, err
	}
	values := make(map[string]json.RawMessage, len(p.entries))
	for key, e := range p.entries {
		values[key] = e.value
	}
	if p.damage != nil {
		return values, p.report(), p.damage
	}
	return values, p.report(), nil
}

// replayFile replays the file at path.
func replayFile(path string) (*replay, error) {
	info, err := os.Stat(path) // before the open, which would wait on a FIFO
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("state: %w", &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")})
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	defer f.Close()
	return readJournal(path, f)
}
