// Package library keeps the images of this host: where each comes from and that it is
// whole, what it is, in which pool it lies, and what has to be active before it can be
// read.
//
// An image is a disc, which can only be put into CD drives (Find), or a disk image, of
// which only machines' disks are made (FindDisk, Lend). Which of them it is was found out
// from its bytes and is never changed. A disk image comes like a disc does, or is captured
// from a machine's disk (Capture).
//
// A pool is a directory, a volume group, or a file system that is mounted only while
// something in it is used. What trayd itself has put into a pool is in the catalogue, a
// part of the state file: a name is a pointer to a content, which a pool has once, under
// its SHA-256 in a directory (sha256/HEX.iso, HEX.qcow2, HEX.raw), as a logical volume in a volume group. A
// directory's other files can be used by their names, too.
//
// An image is allocated, downloading, verifying, then ready, or failed with one cause and
// one remedy. Nothing can be put into a drive before it is ready, that is whole, durable,
// compared with its checksum and signature, and inspected. Each transition is durable
// before the next begins, so that a start after any death finishes or removes what the
// death left: Resume.
package library

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/state"
)

// PoolType is a kind of pool.
type PoolType string

// The types of pools.
const (
	Dir   PoolType = "dir"
	LVM   PoolType = "lvm"
	Mount PoolType = "mount"
)

// Pool is a place that holds images.
type Pool struct {
	Name string
	Type PoolType
	Path string // of a Dir
	VG   string // of an LVM
	// Quota is how many bytes the images that trayd adds may have together; 0: no limit.
	Quota int64
	// Verity has each image that is added carry its hash tree.
	Verity bool
	// Stage is the pool in which copies of a Mount's images are kept for the next time; "":
	// none.
	Stage string
}

// Level is what an image needs at least to be taken.
type Level string

// The levels.
const (
	VerifyNone      Level = "none"
	VerifyChecksum  Level = "checksum"  // or a signature
	VerifySignature Level = "signature" // of a pinned key
)

// Options are a host's.
type Options struct {
	Pools     []Pool
	Default   string // the pool for those who name none; "": the first that can be written
	Fetch     fetch.Options
	Verify    Level
	Keys      []string // files of public keys, read each time
	AllowWeak bool     // MD5 and SHA-1, when the request wants them
	MaxSize   int64    // bytes of an image; 0: no limit
	QemuImg   string   // the program that captures disks; "": qemu-img, wherever PATH has it
}

// Storage is what a library needs of the host's volumes: a *volume.Host.
type Storage interface {
	// CreateLV makes a logical volume of at least size bytes, active, and marked as one
	// that isn't finished.
	CreateLV(ctx context.Context, vg, lv string, size int64) error
	// OpenForWriting opens, and turns on if need be, one that isn't finished.
	OpenForWriting(ctx context.Context, vg, lv string) (*os.File, error)
	FinishLV(ctx context.Context, vg, lv string) error
	RemoveLV(ctx context.Context, vg, lv string) error
	ListLVs(ctx context.Context, vg string) ([]volume.LVInfo, error)
	Volume(volume.Ref) (volume.Volume, error)
}

// Users says which drives have what lies at a place, and which machines' disks are overlays
// of it, and under which name each has asked for it.
type Users func(Place) []User

// User is a drive that has an image, or a machine whose disk is an overlay of it.
type User struct {
	Drive   string // VM/DRIVE; "" for a machine
	Machine string // "" for a drive
	Medium  string // as it was asked for; "": by whatever name
}

// Event is something that happened to an image while nobody may be waiting for it.
type Event struct {
	Image Image
	Err   error // why it has failed
}

// Library is the images of this host. Its methods are safe for concurrent use.
type Library struct {
	journal *state.Journal
	storage Storage
	users   Users
	log     *slog.Logger
	// failPoint is called by name at each point at which the death of trayd is tested.
	failPoint func(string)
	turns     chan struct{} // holds a token for each download under way
	captures  chan struct{} // the same for captures, which don't wait for a slow network
	room      sync.Mutex    // held while room is made: two images don't count on the same bytes

	mu        sync.Mutex // guards below
	options   Options
	client    *fetch.Client
	busy      map[string]bool          // catalogue keys of images that somebody does something about: to their content, or just to their entries
	jobs      map[string]*job          // by catalogue key: what is on its way
	lent      map[string]int           // by catalogue key: how many machines are being made from a disk image
	contents  map[string]chan struct{} // by pool and sum: those that hold has; closed when it lets go
	ctx       context.Context          // of Start; nil before
	announced map[string]announcement  // uploads that have not begun, by catalogue key
	work      sync.WaitGroup           // of jobs
	fetched   atomic.Uint64            // bytes of downloads since the start
	told      func(Event)
}

// maxDownloads is how many downloads are under way at once; the others wait, allocated.
// More make a thin line slower for all and let none end.
const maxDownloads = 4

// maxCaptures is how many disks are captured at once. One keeps a disk busy.
const maxCaptures = 2

// New returns a library whose catalogue is in the journal. failPoint may be nil.
func New(journal *state.Journal, storage Storage, users Users, o Options, log *slog.Logger, failPoint func(string)) (*Library, error) {
	l := &Library{
		journal: journal, storage: storage, users: users, log: log, failPoint: failPoint,
		turns: make(chan struct{}, maxDownloads), captures: make(chan struct{}, maxCaptures), lent: make(map[string]int), busy: make(map[string]bool), jobs: make(map[string]*job), contents: make(map[string]chan struct{}), announced: make(map[string]announcement),
	}
	if failPoint == nil {
		l.failPoint = func(string) {}
	}
	return l, l.Configure(o)
}

// Configure takes new settings. What is under way goes on with the old ones; after an
// error nothing is changed.
func (l *Library) Configure(o Options) error {
	client, err := fetch.New(o.Fetch)
	if err != nil {
		return fmt.Errorf("the sources of images: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.options, l.client = o, client
	return nil
}

func (l *Library) configured() (Options, *fetch.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.options, l.client
}

func (l *Library) list() []Pool {
	o, _ := l.configured()
	return slices.Clone(o.Pools)
}

// Error is an image or a pool that can't be had or made.
type Error struct {
	Code   Code
	Detail string
	Next   string
	Err    error
}

func (e *Error) Error() string { return e.Detail }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Code is a kind of Error, as the API names it. Those of a source are wire.SourceCode and
// a fetch.Kind, those of a checksum or a signature wire.VerifyCode and a verify.Reason.
type Code = wire.Code

// The codes.
const (
	NoSuchImage = wire.NoSuchMedium
	NoSuchPool  = wire.NoSuchPool
	BadName     = wire.BadRequest
	BadRequest  = wire.BadRequest
	Ambiguous   = wire.BadRequest
	Exists      = wire.ImageExists
	InUse       = wire.ImageInUse
	NotReady    = wire.ImageNotReady // on its way, or failed
	Invalid     = wire.NotADisc
	NotADisk    = wire.NotADisk
	DiskRefused = wire.DiskRefused
	Unreadable  = wire.Unreadable
	Truncated   = wire.Truncated
	Changed     = wire.ImageDamaged  // the content is another than the one that was added
	Unverified  = wire.ImageUnsigned // the host wants a checksum or a signature
	NoSpace     = wire.NoSpace
	OverQuota   = wire.OverQuota
	Cancelled   = wire.CancelledCode
	Interrupted = wire.ImageCutOff
	Failed      = wire.PoolFailed
)

func problem(code Code, next, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Next: next, Err: errors.Unwrap(err)}
}

func (l *Library) pool(name string) (Pool, error) {
	pools := l.list()
	for _, p := range pools {
		if p.Name == name {
			return p, nil
		}
	}
	return Pool{}, problem(NoSuchPool, "pools: "+names(pools)+"; they are defined by [[pool]] in trayd.toml", "no pool %s", name)
}

// poolFor is the pool for a new image.
func (l *Library) poolFor(name string) (Pool, error) {
	o, _ := l.configured()
	if name == "" {
		name = o.Default
	}
	if name == "" {
		for _, p := range o.Pools {
			if p.Type != Mount {
				return p, nil
			}
		}
		return Pool{}, problem(NoSuchPool, "add a [[pool]] of type dir or lvm to trayd.toml", "there is no pool that images can be added to")
	}
	p, err := l.pool(name)
	if err == nil && p.Type == Mount {
		return p, problem(Failed, "add it to a pool of type dir or lvm", "pool %s is mounted read-only", name)
	}
	return p, err
}

func names(pools []Pool) string {
	var all []string
	for _, p := range pools {
		all = append(all, p.Name)
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// maxName is of an image's name in bytes; a logical volume's may have 127 (lvm(8)).
const maxName = 127

// checkName refuses what can't be a file's and a logical volume's name.
func checkName(name string) error {
	ok := name != "" && len(name) <= maxName && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.+", c) >= 0)
	}
	if !ok {
		return problem(BadName, "use letters, digits, '-', '_', '.' and '+', not beginning with '-' or '.'", "%q can't be an image's name", name)
	}
	return nil
}

// occupy keeps others from the same image while something is done about it.
func (l *Library) occupy(pool, name string) (done func(), err error) {
	return l.take(pool, name, true)
}

// note is occupy for what changes the image's entry only: it can be put into drives
// meanwhile.
func (l *Library) note(pool, name string) (done func(), err error) { return l.take(pool, name, false) }

func (l *Library) take(pool, name string, content bool) (done func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := key(pool, name)
	next := "wait for it to end"
	if l.jobs[k] != nil {
		next += ", or stop it: `trayctl image cancel " + name + "`"
	}
	if _, taken := l.busy[k]; taken || l.jobs[k] != nil {
		return nil, problem(InUse, next, "image %s of pool %s is being added, removed or verified", name, pool)
	}
	l.busy[k] = content
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, k)
	}, nil
}

// hold keeps others from giving a content another name and from taking away its last one.
// It waits for them. Whoever has it may have an image's name, and takes none.
func (l *Library) hold(ctx context.Context, pool, sha256 string) (done func(), err error) {
	k := pool + "/" + sha256
	for {
		l.mu.Lock()
		other := l.contents[k]
		if other == nil {
			mine := make(chan struct{})
			l.contents[k] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.contents, k)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// occupied reports whether somebody does something about an image's content. Its volume is active
// then without a drive's record, and goes off at the end, whoever has just begun to use it.
func (l *Library) occupied(pool, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy[key(pool, name)] || l.jobs[key(pool, name)] != nil
}
