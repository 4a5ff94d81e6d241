package qmptest

import (
	"encoding/json"
	"os"
	"time"
)

// A Request is a command that came. It can be answered from any goroutine, at any time, more than once, or never;
// answers to a client that has gone are lost.
type Request struct {
	Command string
	Args    json.RawMessage // nil when there are none
	ID      json.RawMessage // nil when there is none
	Raw     json.RawMessage // the whole command
	File    *os.File        // what an add-fd or getfd brought, or nil; the server closes it at its end

	session *session
}

// answer is QEMU's error object.
type answer struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// reply has the order of members that QEMU has.
type reply struct {
	Return any             `json:"return,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
	Error  *answer         `json:"error,omitempty"`
}

// Decode decodes the arguments into v and fails the test when they don't fit.
func (r *Request) Decode(v any) {
	if r.Args == nil {
		return
	}
	if err := json.Unmarshal(r.Args, v); err != nil {
		r.session.server.t.Errorf("qmptest: arguments of %s: %v", r.Command, err)
	}
}

// Return answers with a value; nil stands for the empty object, which most commands return.
func (r *Request) Return(v any) { r.session.send(r.success(v)) }

func (r *Request) success(v any) reply {
	if v == nil {
		v = struct{}{}
	}
	return reply{Return: v, ID: r.ID}
}

// Error refuses the command.
func (r *Request) Error(class, desc string) {
	r.session.send(reply{Error: &answer{class, desc}, ID: r.ID})
}

// ErrorWithoutID refuses a command without saying which one, as QEMU does with one that it cannot parse.
func (r *Request) ErrorWithoutID(class, desc string) {
	r.session.send(reply{Error: &answer{class, desc}})
}

// Torn sends only the first n bytes of what Return would send. Let [Request.Hangup] follow, or nothing.
func (r *Request) Torn(v any, n int) {
	text := r.session.server.encode(r.success(v))
	r.session.write(text[:min(n, len(text))])
}

// Dribble sends what Return would send in pieces of n bytes with a pause before each, until the client has gone.
func (r *Request) Dribble(v any, n int, pause time.Duration) {
	text := r.session.server.encode(r.success(v))
	for len(text) > 0 && r.Sleep(pause) {
		piece := text[:min(n, len(text))]
		r.session.write(piece)
		text = text[len(piece):]
	}
}

// ReturnAnd sends, in one write, what Return would send and further bytes behind it: an event that the client must not
// lose, say.
func (r *Request) ReturnAnd(v any, raw string) {
	r.session.write(append(r.session.server.encode(r.success(v)), raw...))
}

// Write sends bytes as they are.
func (r *Request) Write(raw string) { r.session.write([]byte(raw)) }

// Hangup closes the connection, as a QEMU does that dies.
func (r *Request) Hangup() { r.session.hangup() }

// Done is closed when the client has been cut off, by Hangup or by the end of the server. A handler that blocks has to
// watch it.
func (r *Request) Done() <-chan struct{} { return r.session.done }

// Sleep waits that long, and returns false at once when the session ends.
func (r *Request) Sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.session.done:
		return false
	}
}
