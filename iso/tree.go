package iso

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// What is read of a file tree, whatever the image says. A directory tree that Linux was installed from has a
// hundredth of it.
const (
	maxDirectory   = 16 << 20  // bytes of one directory on the disc
	maxListing     = 10 << 20  // bytes of memory for the entries of one directory: 65,000 with short names
	maxDirectories = 1 << 16   // as many as a path table can number (ECMA-119 9.4.4)
	maxBudget      = 512 << 20 // bytes of directories and file entries in the life of a tree
	maxDepth       = 128       // directories in one another
	maxLinks       = 40        // symbolic links on one path, as in Linux
	maxLink        = 4 << 10   // bytes that a symbolic link has
)

// A node is a file or directory: both fs.DirEntry and fs.FileInfo. Whole directories of them are in memory at once,
// so it is small.
type node struct {
	name     string
	target   string // of a symbolic link
	size     int64
	modified int64    // seconds since 1970; math.MinInt64 for none
	id       uint64   // where it is on the disc
	parts    []extent // of an ISO 9660 file
	mode     fs.FileMode
	broken   error // why it can't be opened
}

func (n *node) Name() string               { return n.name }
func (n *node) IsDir() bool                { return n.mode.IsDir() }
func (n *node) Type() fs.FileMode          { return n.mode.Type() }
func (n *node) Info() (fs.FileInfo, error) { return n, nil }
func (n *node) Size() int64                { return n.size }
func (n *node) Mode() fs.FileMode          { return n.mode }
func (n *node) Sys() any                   { return nil }
func (n *node) String() string             { return fs.FormatDirEntry(n) }
func (n *node) ModTime() time.Time {
	if n.modified == math.MinInt64 {
		return time.Time{}
	}
	return time.Unix(n.modified, 0).UTC()
}

// unix is the time as a node keeps it.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return math.MinInt64
	}
	return t.Unix()
}

// A reader reads the directories of one kind of file system.
type reader interface {
	root() (*node, error)
	// list calls add for the entries of a directory, in the disc's order.
	list(dir *node, add func(*node) error) error
	content(n *node) ([]piece, error)
}

// A budget is how much of a disc a tree may still read beside its files' content. An image can name the same directory
// in so many places that a walk would never end.
type budget struct{ left int64 }

func newBudget() *budget { return &budget{maxBudget} }

var errBudget = errors.New("the image has more directories than a disc can have: they contain one another")

func (b *budget) charge(n int64) error {
	if b.left -= n; b.left < 0 {
		return errBudget
	}
	return nil
}

// A fileTree is the fs.FS over a reader. It is safe for concurrent use.
type fileTree struct {
	source
	reader
	top *node

	mu     sync.Mutex          // guards what follows, and the reader, which has scratch memory
	dirs   map[string]*node    // directories that were listed, by path
	owners map[uint64]location // where each directory is, so that none is in two places
	last   string              // the path of the directory listed last
	listed []*node             // and what it has, by name; nil when none was
}

type location struct {
	parent uint64
	name   string
}

var (
	_ fs.ReadDirFS  = (*fileTree)(nil)
	_ fs.StatFS     = (*fileTree)(nil)
	_ fs.ReadLinkFS = (*fileTree)(nil)
)

func newTree(s source, r reader) (*fileTree, error) {
	top, err := r.root()
	if err != nil {
		return nil, err
	}
	t := &fileTree{source: s, reader: r, top: top, dirs: map[string]*node{".": top}, owners: map[uint64]location{top.id: {}}}
	_, err = t.list(".", top)
	return t, err
}

// list returns what a directory has, sorted by name; of two entries with one name the first. The caller holds mu, or is
// alone.
func (t *fileTree) list(path string, dir *node) ([]*node, error) {
	if t.listed != nil && t.last == path {
		return t.listed, nil
	}
	if dir.broken != nil {
		return nil, dir.broken
	}
	nodes, memory := make([]*node, 0, 16), 0
	err := t.reader.list(dir, func(n *node) error {
		if n.name = fileName(n.name); n.name == "" {
			return nil
		}
		if memory += 128 + len(n.name) + len(n.target) + 16*len(n.parts); memory > maxListing {
			return fmt.Errorf("a directory with more than %d entries", len(nodes))
		}
		nodes = append(nodes, n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(nodes, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	nodes = slices.CompactFunc(nodes, func(a, b *node) bool { return a.name == b.name })
	for _, n := range nodes {
		if n.IsDir() {
			t.adopt(path, dir, n)
		}
	}
	t.last, t.listed = path, nodes
	return nodes, nil
}

// adopt remembers a directory. One that is in the tree already, in another place, can't be opened: following it might
// never end.
func (t *fileTree) adopt(path string, parent, n *node) {
	here := location{parent.id, n.name}
	was, known := t.owners[n.id]
	switch {
	case known && was != here:
		n.broken = &DamagedError{"a directory that is in the tree twice", int64(n.id)}
	case !known && len(t.owners) >= maxDirectories:
		n.broken = fmt.Errorf("more than %d directories", maxDirectories)
	case strings.Count(path, "/") >= maxDepth:
		n.broken = fmt.Errorf("more than %d directories in one another", maxDepth)
	default:
		t.owners[n.id] = here
		t.dirs[join(path, n.name)] = n
	}
}

func join(path, name string) string {
	if path == "." {
		return name
	}
	return path + "/" + name
}

// fileName makes a name fit for fs.FS: valid UTF-8 without a slash, and neither "." nor "..". Control characters stay.
func fileName(s string) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if strings.ContainsAny(s, "/\x00") {
		s = strings.NewReplacer("/", string(utf8.RuneError), "\x00", string(utf8.RuneError)).Replace(s)
	}
	if s == "." || s == ".." {
		return ""
	}
	return s
}

// find walks along a path. It follows symbolic links, but not one at the end unless follow is set. It returns the path
// without links.
func (t *fileTree) find(name string, follow bool) (string, *node, error) {
	if !fs.ValidPath(name) {
		return "", nil, fs.ErrInvalid
	}
	if dir, ok := t.dirs[name]; ok {
		return name, dir, nil
	}
	path, dir, links := ".", t.top, 0
	rest := strings.Split(name, "/")
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case ".", "":
			continue
		case "..":
			path = parentOf(path)
			dir = t.dirs[path]
			continue
		}
		if !dir.IsDir() {
			return "", nil, fs.ErrNotExist
		}
		child, err := t.lookup(path, dir, part)
		if err != nil {
			return "", nil, err
		}
		if child.mode.Type() == fs.ModeSymlink && (follow || len(rest) > 0) {
			if links++; links > maxLinks {
				return "", nil, fmt.Errorf("more than %d symbolic links", maxLinks)
			}
			if strings.HasPrefix(child.target, "/") { // from the disc's root: there is no other
				path, dir = ".", t.top
			}
			rest = append(strings.Split(child.target, "/"), rest...)
			continue
		}
		path, dir = join(path, part), child
	}
	return path, dir, nil
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

func (t *fileTree) lookup(path string, dir *node, name string) (*node, error) {
	if child, ok := t.dirs[join(path, name)]; ok {
		return child, nil
	}
	nodes, err := t.list(path, dir)
	if err != nil {
		return nil, err
	}
	i, found := slices.BinarySearchFunc(nodes, name, func(n *node, name string) int { return strings.Compare(n.name, name) })
	if !found {
		return nil, fs.ErrNotExist
	}
	return nodes[i], nil
}

// Open opens a file or directory; symbolic links are followed.
func (t *fileTree) Open(name string) (fs.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	path, n, err := t.find(name, true)
	if err == nil {
		err = n.broken
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if n.IsDir() {
		return &openDir{tree: t, node: n, path: path}, nil
	}
	pieces, err := t.content(n)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &openFile{node: n, path: name, content: content{source: t.source, pieces: pieces, size: n.size}}, nil
}

// ReadDir lists a directory, sorted by name.
func (t *fileTree) ReadDir(name string) ([]fs.DirEntry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	path, n, err := t.find(name, true)
	if err == nil && !n.IsDir() {
		err = errors.New("not a directory")
	}
	var nodes []*node
	if err == nil {
		nodes, err = t.list(path, n)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	entries := make([]fs.DirEntry, len(nodes))
	for i, n := range nodes {
		entries[i] = n
	}
	return entries, nil
}

// Stat says what a file is; symbolic links are followed.
func (t *fileTree) Stat(name string) (fs.FileInfo, error) { return t.stat("stat", name, true) }

// Lstat is Stat of a symbolic link itself.
func (t *fileTree) Lstat(name string) (fs.FileInfo, error) { return t.stat("lstat", name, false) }

func (t *fileTree) stat(op, name string, follow bool) (fs.FileInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, n, err := t.find(name, follow)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return n, nil
}

// ReadLink says where a symbolic link points to.
func (t *fileTree) ReadLink(name string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, n, err := t.find(name, false)
	if err == nil && n.Type() != fs.ModeSymlink {
		err = fs.ErrInvalid
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return n.target, nil
}

// An openDir is a directory being read. It isn't safe for concurrent use.
type openDir struct {
	tree *fileTree
	node *node
	path string
	rest []fs.DirEntry
	read bool
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.node, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		var err error
		if d.rest, err = d.tree.ReadDir(d.path); err != nil {
			return nil, err
		}
		d.read = true
	}
	if n > 0 && len(d.rest) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.rest) {
		n = len(d.rest)
	}
	part := d.rest[:n:n]
	d.rest = d.rest[n:]
	return part, nil
}
