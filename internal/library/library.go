// Package library keeps the images of this host: which there are, in which pool each
// lies, and what has to be active before one can be read.
//
// A pool is a directory, a volume group (an image is a logical volume of its name), or
// a file system that is mounted only while something in it is used. What trayd itself
// has put into a pool is in the catalogue, a part of the state file; a directory's other
// files can be used by their names, too.
package library

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/trayd/trayd/blockdev/volume"
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
}

// Storage is what a library needs of the host's volumes: a *volume.Host.
type Storage interface {
	// CreateLV makes a logical volume of at least size bytes, active, and marked as one
	// that isn't finished.
	CreateLV(ctx context.Context, vg, lv string, size int64) error
	OpenForWriting(ctx context.Context, vg, lv string) (*os.File, error)
	FinishLV(ctx context.Context, vg, lv string) error
	RemoveLV(ctx context.Context, vg, lv string) error
	ListLVs(ctx context.Context, vg string) ([]volume.LVInfo, error)
	Volume(volume.Ref) (volume.Volume, error)
}

// Image is one image of the catalogue.
type Image = wire.Image

// Place is where an image lies: a file, or a volume and a file inside it.
type Place struct {
	Root, Path string      // of a file: the directory that it stays beneath, and its path
	Volume     *volume.Ref // what has to be active; nil for a file
	Inside     string      // the file in a Volume that is a file system
	Size       int64       // exact, in bytes, where the volume may be larger; 0: not known
}

// Library is the images of this host. Its methods are safe for concurrent use.
type Library struct {
	journal *state.Journal
	storage Storage

	mu    sync.Mutex // guards below
	pools []Pool
	busy  map[string]bool // catalogue keys of images that are being added or removed
}

// New returns a library whose catalogue is in the journal.
func New(journal *state.Journal, storage Storage, pools []Pool) *Library {
	return &Library{journal: journal, storage: storage, pools: pools, busy: make(map[string]bool)}
}

// Configure takes new pools.
func (l *Library) Configure(pools []Pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pools = pools
}

func (l *Library) list() []Pool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pools)
}

const keyPrefix = "image/"

func key(pool, name string) string { return keyPrefix + pool + "/" + name }

// Images is the catalogue, by pool and name.
func (l *Library) Images() []Image {
	images := []Image{}
	l.journal.Range(func(k string, value json.RawMessage) bool {
		var i Image
		if strings.HasPrefix(k, keyPrefix) && json.Unmarshal(value, &i) == nil {
			images = append(images, i)
		}
		return true
	})
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Pool+"/"+a.Name, b.Pool+"/"+b.Name) })
	return images
}

// Image looks one up in the catalogue.
func (l *Library) Image(pool, name string) (Image, bool) {
	var i Image
	ok, err := l.journal.Get(key(pool, name), &i)
	return i, ok && err == nil
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

// Code is a kind of Error.
type Code string

// The codes.
const (
	NoSuchImage Code = "no-such-image"
	NoSuchPool  Code = "no-such-pool"
	BadName     Code = "bad-name"
	Ambiguous   Code = "ambiguous"
	Exists      Code = "exists"
	InUse       Code = "in-use"
	Invalid     Code = "invalid"
	NoSpace     Code = "no-space"
	Failed      Code = "failed"
)

func problem(code Code, next, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Next: next, Err: errors.Unwrap(err)}
}

// Find finds an image by NAME, in whichever pool has it, or by POOL/NAME.
func (l *Library) Find(name string) (Place, error) {
	pools := l.list()
	if pool, rest, ok := strings.Cut(name, "/"); ok {
		p, err := l.pool(pool)
		if err != nil {
			return Place{}, err
		}
		pools, name = []Pool{p}, rest
	}
	if err := checkName(name); err != nil {
		return Place{}, err
	}
	var (
		found []Place
		in    []string
		named = len(pools) == 1
		shut  []string // pools that nobody can look into now
		busy  bool
	)
	for _, p := range pools {
		if l.occupied(p.Name, name) {
			busy = true
		} else if place, ok := l.in(p, name, named); ok {
			found, in = append(found, place), append(in, "image:"+p.Name+"/"+name)
		} else if p.Type == Mount {
			shut = append(shut, "image:"+p.Name+"/"+name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Place{}, problem(Ambiguous, "name one: "+strings.Join(in, ", "), "image %s is in several pools", name)
	case busy:
		return Place{}, problem(InUse, "wait for it to end", "image %s is being added or removed", name)
	case len(pools) == 0:
		return Place{}, problem(NoSuchImage, "add a [[pool]] to trayd.toml, or name a file by its path", "no image %s: there are no pools", name)
	case len(shut) > 0:
		return Place{}, problem(NoSuchImage, "if it is in a pool that is mounted on demand, say so: "+strings.Join(shut, ", "), "no image %s", name)
	}
	return Place{}, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s in %s", name, names(pools))
}

// in looks for an image in one pool. A pool that would have to be mounted for that is
// believed to have it if it is the one that was named.
func (l *Library) in(p Pool, name string, named bool) (Place, bool) {
	switch p.Type {
	case Dir:
		for _, file := range []string{name + ".iso", name} {
			path := filepath.Join(p.Path, file)
			if _, err := os.Lstat(path); err == nil {
				return Place{Root: p.Path, Path: path}, true
			}
		}
	case LVM:
		if i, ok := l.Image(p.Name, name); ok && i.Place == placeIn(p, name) {
			return Place{Volume: &volume.Ref{Kind: volume.LVM, Name: p.VG + "/" + name}, Size: i.Size}, true
		}
	case Mount:
		if named {
			return Place{Volume: &volume.Ref{Kind: volume.Mount, Name: p.Name}, Inside: name}, true
		}
	}
	return Place{}, false
}

// placeIn is where an image that is added to a pool comes to lie.
func placeIn(p Pool, name string) string {
	if p.Type == LVM {
		return volume.Ref{Kind: volume.LVM, Name: p.VG + "/" + name}.String()
	}
	return filepath.Join(p.Path, name+".iso")
}

// strayed is the error of an image of the catalogue that lies elsewhere than its pool is
// now: what lies there under its name is somebody else's.
func (l *Library) strayed(p Pool, name string) error {
	i, known := l.Image(p.Name, name)
	if now := placeIn(p, name); known && i.Place != now {
		return problem(Failed, "define the pool as it was, then remove the image", "image %s of pool %s was put into %s, and the pool's place is %s now", name, p.Name, i.Place, now)
	}
	return nil
}

// FindPDIV finds a disc by oVirt's coordinates: POOL/DOMAIN/IMAGE/VOLUME. The domain is
// a pool of trayd's; in a volume group the volume is a logical volume of that name, in
// a directory or a file system the file images/IMAGE/VOLUME.
func (l *Library) FindPDIV(coordinates string) (Place, error) {
	parts := strings.Split(coordinates, "/")
	if len(parts) != 4 || slices.ContainsFunc(parts, func(p string) bool { return checkName(p) != nil }) {
		return Place{}, problem(BadName, "write pdiv:POOL/DOMAIN/IMAGE/VOLUME", "%q is not four names with slashes between them", coordinates)
	}
	domain, image, vol := parts[1], parts[2], parts[3]
	p, err := l.pool(domain)
	if err != nil {
		return Place{}, err
	}
	inside := filepath.Join("images", image, vol)
	switch p.Type {
	case LVM:
		return Place{Volume: &volume.Ref{Kind: volume.LVM, Name: p.VG + "/" + vol}}, nil
	case Mount:
		return Place{Volume: &volume.Ref{Kind: volume.Mount, Name: p.Name}, Inside: inside}, nil
	}
	return Place{Root: p.Path, Path: filepath.Join(p.Path, inside)}, nil
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
