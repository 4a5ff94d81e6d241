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
	// Image is its name with its pool, image:POOL/NAME, where a Users is asked about one.
	Image      string
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

// Find finds a disc for a drive by NAME, in whichever pool has it, or by POOL/NAME. A disk
// image is refused.
func (l *Library) Find(name string) (Place, error) {
	h, err := l.find(name, wire.ImageDisc)
	return h.place, err
}

// FindDisk finds a disk image as Find does a disc, which is refused, as are files that trayd
// hasn't added. Lend keeps it where it is.
func (l *Library) FindDisk(name string) (Place, Image, error) {
	h, err := l.find(strings.TrimPrefix(name, "image:"), wire.ImageDisk)
	return h.place, h.image, err
}

// hit is what was found under a name; image is zero for a file that isn't in the catalogue.
type hit struct {
	place Place
	image Image
}

func (l *Library) find(name string, kind wire.ImageKind) (hit, error) {
	pools := l.list()
	if pool, rest, ok := strings.Cut(name, "/"); ok {
		p, err := l.pool(pool)
		if err != nil {
			return hit{}, err
		}
		pools, name = []Pool{p}, rest
	}
	if err := checkName(name); err != nil {
		return hit{}, err
	}
	var (
		found []hit
		in    []string
		named = len(pools) == 1
		shut  []string // pools that nobody can look into now
		later error    // why one can't be used yet
	)
	for _, p := range pools {
		h, ok, err := l.in(p, name, named, kind)
		switch {
		case err != nil:
			later = err
		case ok:
			found, in = append(found, h), append(in, "image:"+p.Name+"/"+name)
		case p.Type == Mount && kind == wire.ImageDisc:
			shut = append(shut, "image:"+p.Name+"/"+name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return hit{}, problem(Ambiguous, "name one: "+strings.Join(in, ", "), "image %s is in several pools", name)
	case later != nil:
		return hit{}, later
	case len(pools) == 0:
		return hit{}, problem(NoSuchImage, "add a [[pool]] to trayd.toml, or name a file by its path", "no image %s: there are no pools", name)
	case len(shut) > 0:
		return hit{}, problem(NoSuchImage, "if it is in a pool that is mounted on demand, say so: "+strings.Join(shut, ", "), "no image %s", name)
	}
	return hit{}, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s in %s", name, names(pools))
}

// in looks for an image in one pool. A pool that would have to be mounted for that is
// believed to have it if it is the one that was named.
func (l *Library) in(p Pool, name string, named bool, kind wire.ImageKind) (hit, bool, error) {
	if p.Type == Mount {
		if !named {
			return hit{}, false, nil
		}
		if kind == wire.ImageDisk {
			return hit{}, false, problem(NotADisk, "add it to a pool of type dir: `trayctl image add NAME FILE`", "image:%s/%s is a file of a pool that is mounted on demand, whose files are discs", p.Name, name)
		}
		if place, ok := l.staged(p, name); ok {
			return hit{place: place}, true, nil
		}
		return hit{place: Place{Volume: &volume.Ref{Kind: volume.Mount, Name: p.Name}, Inside: name, Stage: p.Stage != ""}}, true, nil
	}
	if i, ok := l.shownIn(p, name); ok {
		if err := ready(i); err != nil {
			return hit{}, false, err
		}
	}
	if l.occupied(p.Name, name) {
		return hit{}, false, beingChanged(name)
	}
	if e, ok := l.entry(p.Name, name); ok {
		if e.Kind != kind {
			return hit{}, false, wrongKind(e.Image)
		}
		place, here := l.placeOf(p, e)
		return hit{place, e.Image}, here, nil
	}
	if p.Type == Dir {
		return inDirectory(p, name, kind)
	}
	return hit{}, false, nil
}

// inDirectory looks for a file that somebody else has put into a directory. It is a disc: as
// a disk image nobody has looked at what other files it names.
func inDirectory(p Pool, name string, kind wire.ImageKind) (hit, bool, error) {
	for _, file := range []string{name + ".iso", name} {
		path := filepath.Join(p.Path, file)
		if st, err := os.Lstat(path); err != nil || st.IsDir() {
			continue
		}
		if kind == wire.ImageDisk {
			return hit{}, false, problem(NotADisk, "add it: `trayctl image add NAME "+path+"`", "image:%s is a file in pool %s that trayd hasn't added, and such files are discs", name, p.Name)
		}
		return hit{place: Place{Root: p.Path, Path: path}}, true, nil
	}
	return hit{}, false, nil
}

func beingChanged(name string) error {
	return problem(InUse, "wait for it to end", "image %s is being added, removed or verified", name)
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
