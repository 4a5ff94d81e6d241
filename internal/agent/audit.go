package agent

import (
	"log/slog"
	"time"
)

// trace is a change that will leave a line in the audit log: who, what, where, how it ended
// and how long it took. A record with audit=true is one, see package audit.
type trace struct {
	log   *slog.Logger
	began time.Time
}

// trace begins one. what are keys and values: vm, drive, medium, pool, image, volume.
func (a *Agent) trace(by Caller, verb string, what ...any) trace {
	return trace{log: a.log.With("audit", true, "by", by.Name, "verb", verb).With(what...), began: time.Now()}
}

// end leaves the line. more are keys and values that weren't known before.
func (t trace) end(err error, more ...any) {
	log := t.log.With(more...).With("took", time.Since(t.began).Round(time.Microsecond))
	if err != nil {
		log.Warn("failed", "code", string(CodeOf(err)), "error", err)
		return
	}
	log.Info("done")
}

// Who changes what nobody asks for.
const (
	askedByGuest = "the guest"
	askedByTrayd = "trayd"
)

// auditEvent leaves a line of a change that no request made. It reports whether it has.
func (a *Agent) auditEvent(e Event) bool {
	by := Caller{Name: askedByTrayd}
	verb := ""
	switch e.Type {
	case EventGuestEjected:
		by.Name, verb = askedByGuest, "guest-eject"
	case EventSettled: // the outcome of what ended with an unknown one, or of an earlier trayd's
		verb = "settle"
	case EventRolledBack:
		verb = "roll-back"
	case EventTrayPutRight:
		verb = "put-right"
	default:
		return false
	}
	a.log.Info("done", "audit", true, "by", by.Name, "verb", verb, "vm", e.VM, "drive", e.Drive, "operation", e.Operation, "reason", e.Detail)
	return true
}
