package qmp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

type kind uint8

const (
	kindUnknown kind = iota
	kindGreeting
	kindReturn
	kindError
	kindEvent
)

// A message is the outermost level of one QMP message, its parts unread and aliasing it: the reader only has to know
// whom a message is for, and whoever that is decodes it in its own goroutine.
type message struct {
	kind      kind
	body      []byte // the value of QMP, return, error, or an event's data
	at        int    // where body begins in the message
	id        []byte // nil when there is none
	name      []byte // an event's name, with its quotes
	timestamp []byte
}

// parseMessage reads the outermost level of an object that a decoder has cut out. What lies deeper is only skipped.
func parseMessage(msg []byte) (message, error) {
	var m message
	var event bool
	p := parser{msg: msg}
	p.expect('{')
	for first := true; !p.failed && !p.accept('}'); first = false {
		if !first {
			p.expect(',')
		}
		key := p.value()
		p.expect(':')
		value := p.value()
		at := p.pos - len(value)
		if p.failed {
			break
		}
		switch string(key) {
		case `"return"`:
			m.kind, m.body, m.at = kindReturn, value, at
		case `"error"`:
			m.kind, m.body, m.at = kindError, value, at
		case `"id"`:
			m.id = value
		case `"event"`:
			event, m.name = true, value
		case `"data"`:
			if m.kind == kindUnknown {
				m.body = value
			}
		case `"timestamp"`:
			m.timestamp = value
		case `"QMP"`:
			m.kind, m.body = kindGreeting, value
		}
	}
	if event && m.kind == kindUnknown {
		m.kind = kindEvent
	}
	if p.failed || m.kind == kindUnknown {
		return message{}, fmt.Errorf("%w: %q", errNotQMP, msg[:min(len(msg), 200)])
	}
	return m, nil
}

// number returns the id as the number that it is when the command was one of ours.
func (m *message) number() (uint64, bool) {
	if len(m.id) < 3 || m.id[0] != '"' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(m.id[1:len(m.id)-1]), idBase, 64)
	return n, err == nil
}

// event decodes the parts of an event into memory of its own.
func (m *message) event() (Event, error) {
	var e Event
	if err := json.Unmarshal(m.name, &e.Name); err != nil {
		return e, fmt.Errorf("%w: event name %q", errNotQMP, m.name)
	}
	if m.timestamp != nil {
		var t struct{ Seconds, Microseconds int64 }
		if err := json.Unmarshal(m.timestamp, &t); err != nil {
			return e, fmt.Errorf("%w: timestamp of event %s", errNotQMP, e.Name)
		}
		if t.Seconds >= 0 { // QEMU says -1 when its clock failed
			e.Time = time.Unix(t.Seconds, t.Microseconds*1000)
		}
	}
	if m.body != nil {
		if !json.Valid(m.body) {
			return e, fmt.Errorf("%w: data of event %s", errNotQMP, e.Name)
		}
		e.Data = bytes.Clone(m.body)
	}
	return e, nil
}

// A parser steps through one level of JSON.
type parser struct {
	msg    []byte
	pos    int
	failed bool
}

func (p *parser) space() {
	for p.pos < len(p.msg) {
		switch p.msg[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) accept(c byte) bool {
	p.space()
	if p.pos < len(p.msg) && p.msg[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

func (p *parser) expect(c byte) {
	if !p.accept(c) {
		p.failed = true
	}
}

// value steps over one value of any kind and returns its text.
func (p *parser) value() []byte {
	p.space()
	begin, depth := p.pos, 0
	for p.pos < len(p.msg) {
		switch p.msg[p.pos] {
		case '"':
			p.text()
		case '{', '[':
			depth++
			p.pos++
		case '}', ']':
			if depth == 0 {
				return p.since(begin)
			}
			depth--
			p.pos++
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return p.since(begin)
			}
			p.pos++
			continue
		default:
			p.pos++
			continue // a number or a word ends where something else begins
		}
		if depth == 0 {
			return p.since(begin)
		}
	}
	return p.since(begin)
}

func (p *parser) text() {
	for p.pos++; p.pos < len(p.msg); p.pos++ {
		switch p.msg[p.pos] {
		case '\\':
			p.pos++
		case '"':
			p.pos++
			return
		}
	}
	p.pos = len(p.msg)
	p.failed = true
}

func (p *parser) since(begin int) []byte {
	if begin == p.pos {
		p.failed = true
		return nil
	}
	return p.msg[begin:p.pos:p.pos]
}
