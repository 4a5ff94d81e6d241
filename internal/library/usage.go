package library

import (
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// Usage is what is known of the images without looking at them.
type Usage struct {
	Images      map[string]int // by state
	Pools       map[string]PoolUse
	Downloading int    // images whose bytes are coming
	Fetched     uint64 // bytes of downloads since the start
}

// PoolUse is what a pool holds.
type PoolUse struct {
	Bytes int64  // of its images, each content once
	Path  string // of a directory, for Free; "" for others
}

// Usage sums up what the catalogue says.
func (l *Library) Usage() Usage {
	k := Usage{Images: make(map[string]int), Pools: make(map[string]PoolUse), Fetched: l.fetched.Load()}
	l.mu.Lock()
	pools := l.options.Pools
	jobs := make(map[string]*job, len(l.jobs))
	for key, j := range l.jobs {
		jobs[key] = j
	}
	l.mu.Unlock()
	for _, p := range pools {
		if p.Type != Mount {
			use := PoolUse{}
			if p.Type == Dir {
				use.Path = p.Path
			}
			k.Pools[p.Name] = use
		}
	}
	counted := make(map[string]bool)
	for _, e := range l.entries() {
		if jobs[e.key()] != nil {
			continue
		}
		k.Images[string(e.State)]++
		place := e.Pool + " " + e.Place
		if use, ok := k.Pools[e.Pool]; ok && e.State == wire.ImageReady && !counted[place] {
			counted[place] = true
			use.Bytes += e.Size
			k.Pools[e.Pool] = use
		}
	}
	for _, j := range jobs {
		i := j.image()
		k.Images[string(i.State)]++
		if i.State == wire.ImageDownloading {
			k.Downloading++
		}
	}
	return k
}

// Free is how many bytes the file system of a directory has left for trayd. It may take as long
// as that doesn't answer.
func Free(path string) (int64, error) {
	var at unix.Statfs_t
	if err := unix.Statfs(path, &at); err != nil {
		return 0, err
	}
	return int64(at.Bavail) * at.Bsize, nil
}
