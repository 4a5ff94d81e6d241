package systemd

import (
	"io"
	"log/slog"

	"github.com/coreos/go-systemd/v22/journal"
)

// LogOptions are how records are logged.
type LogOptions struct {
	// Identifier is what the journal calls the program (SYSLOG_IDENTIFIER).
	Identifier string
	// Level is the least that is logged; nil means slog.LevelInfo.
	Level slog.Leveler
	// Socket is the journal's socket; empty means systemd's own.
	Socket string
}

// NewLogHandler returns a handler that writes to the journal when the manager connected
// standard error to it ($JOURNAL_STREAM names its device and inode), and text to stderr
// else. A standard error that was directed elsewhere is where the text belongs, even
// within a service.
func NewLogHandler(stderr io.Writer, o LogOptions) slog.Handler {
	if o.Level == nil {
		o.Level = slog.LevelInfo
	}
	if o.Socket == "" {
		o.Socket = journalSocket
	}
	if ours, err := journal.StderrIsJournalStream(); err == nil && ours {
		return newJournalHandler(o)
	}
	return slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: o.Level})
}
