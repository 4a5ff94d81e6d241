package library

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/wire"
)

// Place is where an image lies: a file, or a volume and a file inside it.
type Place struct {
	Root, Path string      // of a file: the directory that it stays beneath, and its path
	Volume     *volume.Ref // what has to be active; nil for a file
	Inside     string      // the file in a Volume that is a file system
	Size       int64       // exact, in bytes, where the volume may be larger; 0: not known
	// Known is what the inspection of a file has found, as long as the file is Seen.
	Known *Known
	// Stage is set for a file in a pool whose files are to be staged.
	Stage bool
}

// Known is what is known of a file without reading it.
type Known struct {
	Seen     Seen
	VolumeID string
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
		later error    // why one can't be used yet
	)
	for _, p := range pools {
		place, ok, err := l.in(p, name, named)
		switch {
		case err != nil:
			later = err
		case ok:
			found, in = append(found, place), append(in, "image:"+p.Name+"/"+name)
		case p.Type == Mount:
			shut = append(shut, "image:"+p.Name+"/"+name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Place{}, problem(Ambiguous, "name one: "+strings.Join(in, ", "), "image %s is in several pools", name)
	case later != nil:
		return Place{}, later
	case len(pools) == 0:
		return Place{}, problem(NoSuchImage, "add a [[pool]] to trayd.toml, or name a file by its path", "no image %s: there are no pools", name)
	case len(shut) > 0:
		return Place{}, problem(NoSuchImage, "if it is in a pool that is mounted on demand, say so: "+strings.Join(shut, ", "), "no image %s", name)
	}
	return Place{}, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s in %s", name, names(pools))
}

// in looks for an image in one pool. A pool that would have to be mounted for that is
// believed to have it if it is the one that was named.
func (l *Library) in(p Pool, name string, named bool) (Place, bool, error) {
	if p.Type == Mount {
		if !named {
			return Place{}, false, nil
		}
		if place, ok := l.staged(p, name); ok {
			return place, true, nil
		}
		return Place{Volume: &volume.Ref{Kind: volume.Mount, Name: p.Name}, Inside: name, Stage: p.Stage != ""}, true, nil
	}
	if i, ok := l.shownIn(p, name); ok {
		if err := ready(i); err != nil {
			return Place{}, false, err
		}
	}
	if l.occupied(p.Name, name) {
		return Place{}, false, problem(InUse, "wait for it to end", "image %s is being added, removed or verified", name)
	}
	if e, ok := l.entry(p.Name, name); ok {
		place, here := l.placeOf(p, e)
		return place, here, nil
	}
	if p.Type == Dir {
		for _, file := range []string{name + ".iso", name} {
			path := filepath.Join(p.Path, file)
			if st, err := os.Lstat(path); err == nil && !st.IsDir() {
				return Place{Root: p.Path, Path: path}, true, nil
			}
		}
	}
	return Place{}, false, nil
}

// shownIn is an image as it is shown, if the catalogue has it or it is on its way there.
func (l *Library) shownIn(p Pool, name string) (Image, bool) {
	l.mu.Lock()
	j := l.jobs[key(p.Name, name)]
	l.mu.Unlock()
	if j != nil {
		return j.image(), true
	}
	e, ok := l.entry(p.Name, name)
	return e.Image, ok
}

// ready says why an image can't be used.
func ready(i Image) error {
	switch i.State {
	case wire.ImageReady:
		return nil
	case wire.ImageFailed:
		return problem(NotReady, i.Failure.Remedy, "image %s of pool %s is of no use: %s", i.Name, i.Pool, i.Failure.Cause)
	}
	return problem(NotReady, "wait for it; `trayctl image show "+i.Name+"` says how far it is", "image %s of pool %s is %s", i.Name, i.Pool, i.State)
}

// placeOf is where the content of an image lies, unless its pool is somewhere else by now.
func (l *Library) placeOf(p Pool, e *entry) (Place, bool) {
	if !l.isIn(p, e.Place) {
		return Place{}, false
	}
	if e.Integrity == integrityVerity {
		return Place{Volume: verityRef(e), Size: e.Size}, true
	}
	if p.Type == LVM {
		ref, err := volume.ParseRef(e.Place)
		return Place{Volume: &ref, Size: e.Size}, err == nil
	}
	place := Place{Root: p.Path, Path: e.Place}
	if e.Seen != nil {
		place.Known = &Known{Seen: *e.Seen, VolumeID: e.VolumeID}
	}
	return place, true
}

// isIn reports whether a place is one of the pool's.
func (l *Library) isIn(p Pool, place string) bool {
	if p.Type == LVM {
		return strings.HasPrefix(place, volume.Ref{Kind: volume.LVM, Name: p.VG + "/"}.String())
	}
	return strings.HasPrefix(place, filepath.Clean(p.Path)+"/")
}

// strayed is the error of an image of the catalogue that lies elsewhere than its pool is
// now: what lies there under its name is somebody else's.
func (l *Library) strayed(p Pool, e *entry) error {
	if e.Place == "" || l.isIn(p, e.Place) {
		return nil
	}
	where := p.Path
	if p.Type == LVM {
		where = p.VG
	}
	return problem(Failed, "define the pool as it was, then remove the image", "image %s of pool %s was put into %s, and the pool's place is %s now", e.Name, p.Name, e.Place, where)
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
