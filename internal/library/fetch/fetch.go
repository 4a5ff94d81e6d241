// Package fetch gets files over HTTP and HTTPS across a bad link: it goes on where it broke
// off, tries again for what can pass, turns to the next mirror for what can't, and says of
// each failure what was tried, what stopped it, and what to do.
//
// It fetches only from sources and to addresses that the host allows, also after a
// redirect, and checks addresses when they are dialled: what a name resolves to then is
// what counts. Through a proxy it is the proxy that resolves and dials; then a target that
// is written as an address is checked and one that is written as a name is not, and the
// proxy's own address, which the host's administrator gave, isn't either.
//
// Credentials belong in files, never in URLs. They go only to the host that they are for,
// and only over HTTPS. Nothing that leaves this package (errors, State, Progress) has a
// credential or the query of a URL in it, where others keep theirs.
//
// It knows nothing of images: what is compared with a checksum, and what becomes of a file
// that broke off, is the caller's.
package fetch

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

// Options are of a host. The zero value of each is its default.
type Options struct {
	// Allow are the sources: "https://host[:port]/path/" for all that begins so,
	// "host" or "host:port", "*.host" for what is below it. Empty: every source.
	Allow []string
	// AllowPrivate are addresses that may be dialled although they are loopback,
	// link-local, multicast, unspecified, or a cloud's metadata service. Those of RFC 1918
	// and fc00::/7 may be dialled anyway: edge hosts have their mirrors there.
	AllowPrivate []netip.Prefix
	// CAFile has certificates (PEM) that are trusted besides the system's. It is read for
	// each connection.
	CAFile      string
	Credentials []Credential
	// Proxy says through which proxy a request goes; by default what HTTP_PROXY,
	// HTTPS_PROXY and NO_PROXY said when the process asked first.
	Proxy func(*http.Request) (*url.URL, error)
	// Dial makes the connections, as (*network.Client).DialContext does; nil is the ordinary
	// way. It asks check of each address right before it dials it; check may be nil.
	Dial func(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error)

	Connect       time.Duration // until there is a connection, with TLS: 15 s
	HeaderTimeout time.Duration // until there is an answer: 30 s
	Stall         time.Duration // the longest without a byte: 30 s
	// MinRate is the least that a server may send, in bytes a second over RateWindow: 1024
	// over one minute. Time that the disk takes doesn't count.
	MinRate    int64
	RateWindow time.Duration
	// Attempts is how often a mirror may fail in a row before the next one's turn: 5. It
	// counts anew whenever there are Advance bytes (4 MiB) more than when it last did.
	Attempts int
	Advance  int64
	// Between attempts: BackoffMin (1 s), doubled each time up to BackoffMax (1 min), less
	// up to half of it at random. A server may ask for more (Retry-After), up to MaxRetryAfter
	// (5 min).
	BackoffMin, BackoffMax, MaxRetryAfter time.Duration
	UserAgent                             string // trayd
}

func (o *Options) defaults() {
	or := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	or(&o.Connect, 15*time.Second)
	or(&o.HeaderTimeout, 30*time.Second)
	or(&o.Stall, 30*time.Second)
	or(&o.RateWindow, time.Minute)
	or(&o.BackoffMin, time.Second)
	or(&o.BackoffMax, time.Minute)
	or(&o.MaxRetryAfter, 5*time.Minute)
	if o.MinRate <= 0 {
		o.MinRate = 1 << 10
	}
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.Advance <= 0 {
		o.Advance = 4 << 20
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Dial == nil {
		o.Dial = dial
	}
	if o.UserAgent == "" {
		o.UserAgent = "trayd"
	}
}

// Client fetches by a host's rules. It doesn't change and may be used by several at once.
type Client struct {
	o     Options
	allow []source
}

// New checks the options. It reads no file: credentials and certificates are read when they
// are used, so that they can be changed while the program runs.
func New(o Options) (*Client, error) {
	o.defaults()
	c := &Client{o: o}
	var errs []error
	for _, text := range o.Allow {
		s, err := parseSource(text)
		errs = append(errs, err)
		c.allow = append(c.allow, s)
	}
	for _, cred := range o.Credentials {
		errs = append(errs, cred.check())
	}
	return c, errors.Join(errs...)
}

// State is what a caller keeps of a download, durably, to go on with it in another process.
// It is taken back with the same file.
type State struct {
	URL       string // without its query; of the mirror that the bytes are from
	Size      int64  // of the whole
	Validator string // a strong one; empty when it can't go on
	Bytes     int64  // from the file's beginning, that a loss of power leaves
}

// Job is one file to fetch.
type Job struct {
	URLs  []string // mirrors, in the order in which they are tried; that of State goes first
	Limit int64    // the largest that is taken, in bytes; 0: any
	State State    // of an earlier attempt; the zero value begins at zero
	// Open is called when the size is known, in bytes (-1: the server doesn't say it), and
	// again when it turns out to be another; what it returned before isn't used after
	// that. It must not cut off what State speaks of. Closing is the caller's, after Run.
	Open func(size int64) (*os.File, error)
	// Onto makes the hashes and verifiers, each time that a beginning is made at byte zero;
	// those of the last call have seen the whole file when Run returns without error. Each
	// is written to from one goroutine at a time. May be nil.
	Onto func() ([]io.Writer, error)
	// Progress is told how far it is, at most four times a second and when the phase
	// changes, by one goroutine at a time and not after Run. May be nil.
	Progress  func(Progress)
	AllowHTML bool // also take what the server calls a web page
}

// Result is of a file that is whole and durable.
type Result struct {
	URL       string // without its query
	Size      int64
	Mirror    int // the index in Job.URLs
	Validator string
	Resumed   int64 // bytes that were there before
}

// Run fetches a file. The error is an *Error when one thing decided, or *Failed with one of
// each mirror. After an error the file keeps what was fetched; the last Progress has the
// State with which it can go on.
func (c *Client) Run(ctx context.Context, j Job) (Result, error) {
	d := &download{c: c, job: j, size: unopened, state: j.State, meter: newMeter(j.Progress, j.State)}
	if len(j.URLs) == 0 {
		return Result{}, &Error{Kind: BadURL, Detail: "there is no URL to fetch from", Next: "give one"}
	}
	var failed Failed
	for _, i := range order(j) {
		err := d.from(ctx, i, j.URLs[i])
		if err == nil {
			d.meter.phase(Done)
			return Result{URL: d.state.URL, Size: d.have, Mirror: i, Validator: d.state.Validator, Resumed: d.resumed}, nil
		}
		err.Mirror = i
		failed.Errors = append(failed.Errors, err)
		if err.Kind.local() || len(j.URLs) == 1 {
			d.meter.ended(err)
			return Result{}, err
		}
	}
	d.meter.ended(failed.Errors[len(failed.Errors)-1])
	return Result{}, &failed
}

// order is that of the mirrors, but for the one that State is from: it goes first, since
// any other begins at zero.
func order(j Job) []int {
	var first, rest []int
	for i, raw := range j.URLs {
		if j.State.URL != "" && Redacted(raw) == j.State.URL {
			first = append(first, i)
		} else {
			rest = append(rest, i)
		}
	}
	return append(first, rest...)
}

// Small fetches a sums file or a signature, by the same rules, into memory.
func (c *Client) Small(ctx context.Context, raw string, limit int64) ([]byte, error) {
	u, err := c.parse(raw)
	if err != nil {
		return nil, err
	}
	var body []byte
	err = c.again(ctx, Redacted(raw), func(int) *Error {
		a, err := c.get(ctx, u, nil, false)
		if err != nil {
			return err
		}
		defer a.close()
		body, err = a.small(limit)
		return err
	}, nil, nil)
	if err != nil {
		return nil, err
	}
	return body, nil
}
