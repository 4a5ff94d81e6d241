package audit

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"
)

// mark is the attribute that makes a record one of a change.
const mark = "audit"

// Change is what is counted of one.
type Change struct {
	Verb    string
	Outcome string // the record's message
	Code    string // why it failed; "" for one that did not
	Took    time.Duration
}

// Log is the file, with what is shared by all handlers that write to it. Its methods are safe
// for concurrent use.
type Log struct {
	file    file
	observe func(Change)
}

// New returns a log without a file. observe, which may be nil, is told of every change; it has
// to return at once.
func New(observe func(Change)) *Log {
	if observe == nil {
		observe = func(Change) {}
	}
	return &Log{observe: observe}
}

// Configure has changes written to the file at path; "" to none. What can't be written is
// said to log, which must not lead back here with audit=true.
func (l *Log) Configure(path string, log *slog.Logger) { l.file.configure(path, log) }

// Close closes the file.
func (l *Log) Close() { l.file.configure("", nil) }

// Handler returns a handler that passes records on to next, and takes those of changes, at
// any level from info on, also where next doesn't.
func (l *Log) Handler(next slog.Handler) slog.Handler { return &handler{log: l, next: next} }

// handler has no groups: a record's attributes are its line's keys.
type handler struct {
	log   *Log
	next  slog.Handler
	attrs []slog.Attr // of With
}

// Enabled can't know yet whether a record is of a change.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.next.Enabled(ctx, level)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	all := append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return &handler{log: h.log, next: h.next.WithAttrs(attrs), attrs: all}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{log: h.log, next: h.next.WithGroup(name), attrs: h.attrs}
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if l, ok := lineOf(h.attrs, r); ok {
		h.log.file.write(l.encode())
		h.log.observe(l.Change)
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// line is a change with everything that is said of it.
type line struct {
	Change
	time  time.Time
	pairs []slog.Attr
}

// lineOf reads a record; ok tells whether it is of a change.
func lineOf(attrs []slog.Attr, r slog.Record) (l line, ok bool) {
	l.time, l.Outcome = r.Time, r.Message
	take := func(a slog.Attr) bool {
		a.Value = a.Value.Resolve()
		switch a.Key {
		case mark:
			ok = a.Value.Kind() == slog.KindBool && a.Value.Bool()
			return true
		case "verb":
			l.Verb = a.Value.String()
		case "code":
			l.Code = a.Value.String()
		case "took":
			if a.Value.Kind() == slog.KindDuration {
				l.Took = a.Value.Duration()
				a = slog.Float64("took", float64(l.Took.Microseconds())/1000) // ms
			}
		}
		l.pairs = append(l.pairs, a)
		return true
	}
	for _, a := range attrs {
		take(a)
	}
	r.Attrs(take)
	return l, ok
}

// encode is one line of JSON, in the order in which things were said. What is empty is left
// out.
func (l line) encode() []byte {
	b := []byte(`{"time":`)
	b = appendJSON(b, l.time.UTC().Format("2006-01-02T15:04:05.000Z"))
	b = append(b, `,"outcome":`...)
	b = appendJSON(b, l.Outcome)
	for _, a := range l.pairs {
		v := a.Value.Any()
		switch x := v.(type) {
		case nil:
			continue
		case error:
			v = x.Error()
		case time.Duration:
			v = x.String()
		}
		if a.Value.Kind() != slog.KindFloat64 && a.Value.String() == "" {
			continue
		}
		b = append(b, ',')
		b = appendJSON(b, a.Key)
		b = append(b, ':')
		b = appendJSON(b, v)
	}
	return append(b, '}', '\n')
}

// appendJSON appends a value; what JSON can't have is text.
func appendJSON(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		text, _ = json.Marshal(slog.AnyValue(v).String())
	}
	return append(b, text...)
}
