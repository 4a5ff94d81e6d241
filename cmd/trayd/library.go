package main

import (
	"path/filepath"

	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/library"
)

// libraryOptions are the library's part of the configuration.
func libraryOptions(c *config.Config, s sockets) library.Options {
	o := library.Options{
		Default: c.Library.Pool, Verify: library.Level(c.Library.Verify), Keys: c.Library.Keys,
		AllowWeak: c.Library.AllowWeakChecksums, MaxSize: c.Library.MaxSize,
		Fetch: c.Fetch(), QemuImg: c.Machines.QemuImg,
	}
	o.Fetch.UserAgent = "trayd/" + version
	s.fetch(&o.Fetch)
	writable := false
	for _, p := range c.Pools {
		o.Pools = append(o.Pools, library.Pool{
			Name: p.Name, Type: library.PoolType(p.Type), Path: p.Path, VG: p.VG, Quota: p.Quota, Verity: p.Verity, Stage: p.Stage,
		})
		writable = writable || p.Type != config.PoolMount
	}
	if !writable { // so that images can be added without a word of configuration
		o.Pools = append(o.Pools, library.Pool{Name: defaultPool, Type: library.Dir, Path: filepath.Join(c.StateDir, "images")})
	}
	return o
}

// defaultPool is the pool of a host whose configuration has none that can be written.
const defaultPool = "local"
