package systemd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// Limits of an entry.
const (
	maxFieldName = 64       // bytes; journald drops fields with longer names
	maxField     = 64 << 10 // bytes of one value; what is longer is cut
)

// journalHandler writes records to the journal in its native protocol: every attribute
// is a field, so that `journalctl VM=vm1` finds what concerns a machine. The message
// holds the attributes too, since that is all that journalctl shows by default.
//
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
type journalHandler struct {
	socket *entrySocket
	pool   *sync.Pool // of *entry
	level  slog.Leveler
	group  string // of WithGroup, with a dot behind each
	text   string // what WithAttrs adds to messages
	fields []byte // what WithAttrs adds to entries; the first are the program's
}

func newJournalHandler(o LogOptions) *journalHandler {
	h := &journalHandler{
		socket: &entrySocket{path: o.Socket}, level: o.Level,
		pool: &sync.Pool{New: func() any { return new(entry) }},
	}
	if o.Identifier != "" {
		h.fields = appendField(nil, "SYSLOG_IDENTIFIER", o.Identifier)
	}
	return h
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.group += name + "."
	return &n
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	e := entry{text: []byte(h.text), fields: bytes.Clone(h.fields)}
	for _, a := range attrs {
		e.add(h.group, a)
	}
	n := *h
	n.text, n.fields = string(e.text), e.fields
	return &n
}

// entry is one entry in the making.
type entry struct{ text, fields []byte }

// Handle never waits long for a journal that is stuck, see entrySocket. What can't be
// written is counted, and the count comes with the next entry that can.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	e := h.pool.Get().(*entry)
	defer h.pool.Put(e)
	e.text = append(append(e.text[:0], r.Message...), h.text...)
	e.fields = append(e.fields[:0], h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		e.add(h.group, a)
		return true
	})
	e.fields = appendField(e.fields, "PRIORITY", strconv.Itoa(int(priority(r.Level))))
	e.fields = appendField(e.fields, "MESSAGE", string(e.text))
	return h.socket.write(e.fields)
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l > slog.LevelInfo:
		return journal.PriNotice
	case l == slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// add adds an attribute to the text and to the fields; one without a value to neither.
func (e *entry) add(group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			e.add(group, inner)
		}
		return
	}
	if a.Key == "" {
		return
	}
	value := v.String()
	if v.Kind() == slog.KindAny {
		value = fmt.Sprint(v.Any()) // an error gives its message
	}
	if value == "" {
		return
	}
	e.text = append(append(e.text, ' '), group...)
	e.text = append(append(e.text, a.Key...), '=')
	if strings.ContainsAny(value, " \"=\n\t") {
		e.text = strconv.AppendQuote(e.text, value)
	} else {
		e.text = append(e.text, value...)
	}
	e.fields = appendField(e.fields, fieldName(group+a.Key), value)
}

// fieldName makes a field's name of an attribute's: capitals, digits and underscores,
// not beginning with an underscore or a digit (journald drops those), and none that the
// entry has itself.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
	switch {
	case name[0] == '_' || '0' <= name[0] && name[0] <= '9',
		name == "MESSAGE", name == "PRIORITY", name == "SYSLOG_IDENTIFIER":
		name = "FIELD_" + strings.TrimLeft(name, "_")
	}
	return name[:min(len(name), maxFieldName)]
}

// appendField appends a field as the protocol wants it: in one line, or with its length
// when the value itself has lines.
func appendField(b []byte, name, value string) []byte {
	if len(value) > maxField {
		value = strings.ToValidUTF8(value[:maxField], "") + "…"
	}
	b = append(b, name...)
	if strings.ContainsRune(value, '\n') {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	} else {
		b = append(b, '=')
	}
	return append(append(b, value...), '\n')
}
