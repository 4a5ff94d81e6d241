package fetch

import (
	"fmt"
	"strings"
	"time"
)

// Kind is a kind of failure.
type Kind string

// The kinds. Those of the first group pass by themselves at times and are tried again, as
// is some of DNS, Proxy and ServerError; those of the last end the job, whatever mirrors
// there are; the others end the mirror.
const (
	Refused     Kind = "refused"     // nobody listens there
	Unreachable Kind = "unreachable" // no way there, or no answer to a connection
	Truncated   Kind = "truncated"   // the connection ended before the file
	Stalled     Kind = "stalled"     // nothing came for too long, or too little

	DNS         Kind = "dns"
	Proxy       Kind = "proxy"        // the proxy, or what it says
	ServerError Kind = "server-error" // 5xx, 408, 425, 429, or no HTTP at all

	NotFound          Kind = "not-found"    // 404, 410
	Forbidden         Kind = "forbidden"    // 403
	Unauthorized      Kind = "unauthorized" // 401
	Rejected          Kind = "rejected"     // another answer of no use
	TLSExpired        Kind = "tls-expired"
	TLSName           Kind = "tls-name"
	TLSUnknownCA      Kind = "tls-unknown-ca"
	TLS               Kind = "tls"
	Changed           Kind = "changed" // becomes another file again and again
	RedirectForbidden Kind = "redirect-forbidden"
	RedirectLoop      Kind = "redirect-loop"
	SourceForbidden   Kind = "source-forbidden" // not one that Allow has
	TargetForbidden   Kind = "target-forbidden" // an address that is not dialled
	TooLarge          Kind = "too-large"
	WebPage           Kind = "web-page"
	Encoding          Kind = "encoding"
	BadURL            Kind = "bad-url"

	NoSpace  Kind = "no-space"
	LocalIO  Kind = "local-io"
	Canceled Kind = "canceled"
)

// local reports whether no mirror can help.
func (k Kind) local() bool { return k == NoSpace || k == LocalIO || k == Canceled }

// Error is why a mirror, or the job, failed.
type Error struct {
	Kind   Kind
	URL    string // without its query
	Mirror int    // index in Job.URLs
	Detail string // what stopped it
	Next   string // one sentence on what to do
	Err    error  // may be nil; has no credentials in it

	retry bool          // it can pass
	after time.Duration // the server asked to wait
}

func (e *Error) Error() string {
	s := e.Detail
	if e.URL != "" {
		s = e.URL + ": " + s
	}
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Failed is of several mirrors, none of which gave the file.
type Failed struct {
	Errors []*Error // in the order in which they were tried; at least two
}

func (f *Failed) Error() string {
	all := make([]string, len(f.Errors))
	for i, e := range f.Errors {
		all[i] = e.Error()
	}
	return fmt.Sprintf("none of %d mirrors gave the file: %s", len(all), strings.Join(all, ". "))
}

// Unwrap lets errors.As find the error of the mirror that was tried first.
func (f *Failed) Unwrap() []error {
	all := make([]error, len(f.Errors))
	for i, e := range f.Errors {
		all[i] = e
	}
	return all
}

func fail(k Kind, next, format string, args ...any) *Error {
	return &Error{Kind: k, Next: next, Detail: fmt.Sprintf(format, args...)}
}

// at adds where it happened.
func (e *Error) at(url string) *Error {
	e.URL = url
	return e
}

func (e *Error) because(err error) *Error {
	e.Err = err
	return e
}

// passing marks an error that is worth another attempt.
func (e *Error) passing() *Error {
	e.retry = true
	return e
}
