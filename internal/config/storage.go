package config

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/trayd/trayd/blockdev/volume"
)

// The types of volumes.
const (
	typeLinear = "linear"
	typeVerity = "verity"
)

// sector is what device-mapper counts in, in bytes.
const sector = 512

// maxName is of a volume's or a pool's name, in bytes: device-mapper takes 127, with
// trayd's prefix (DM_NAME_LEN).
const maxName = 100

// volumes checks the [[volume]] tables.
func (k *checker) volumes(list []fileVolume) []volume.Definition {
	var all []volume.Definition
	seen := make(map[string]bool)
	for i, v := range list {
		at := fmt.Sprintf("volume[%d].", i)
		k.unique(at, v.Name, seen)
		d := volume.Definition{Name: v.Name}
		switch k.word(at+"type", v.Type, typeLinear, typeVerity) {
		case typeLinear:
			d.Linear = k.extents(at+"extents", v.Extents)
			k.unwanted(at, v.Type, map[string]bool{"data": v.Data != "", "hash": v.Hash != "", "hash_offset": v.HashOffset != 0, "root_hash": v.RootHash != ""})
		case typeVerity:
			d.Verity = k.verity(at, v)
			k.unwanted(at, v.Type, map[string]bool{"extents": len(v.Extents) > 0})
		}
		all = append(all, d)
	}
	return all
}

func (k *checker) extents(key string, list []fileExtent) []volume.Extent {
	if len(list) == 0 {
		k.refuse(key, `a linear volume needs at least one, such as [{ device = "/dev/sdb" }]`)
	}
	var all []volume.Extent
	for _, e := range list {
		device := k.absolute(key, e.Device)
		if e.Start < 0 || e.Length < 0 || e.Start%sector != 0 || e.Length%sector != 0 {
			k.refuse(key, "start %d and length %d of %s have to be whole sectors of %d bytes, and not negative", e.Start, e.Length, e.Device, sector)
		}
		all = append(all, volume.Extent{Device: device, Start: e.Start, Length: e.Length})
	}
	return all
}

func (k *checker) verity(at string, v fileVolume) *volume.Verity {
	if b, err := hex.DecodeString(v.RootHash); err != nil || len(b) == 0 {
		k.refuse(at+"root_hash", "%q is not the hexadecimal root hash that veritysetup printed", v.RootHash)
	}
	if v.HashOffset < 0 || v.HashOffset%sector != 0 {
		k.refuse(at+"hash_offset", "%d has to be whole sectors of %d bytes, and not negative", v.HashOffset, sector)
	}
	return &volume.Verity{
		Data: k.absolute(at+"data", v.Data), Hash: k.absolute(at+"hash", v.Hash),
		HashOffset: v.HashOffset, RootHash: strings.ToLower(v.RootHash),
	}
}

// pools checks the [[pool]] tables.
func (k *checker) pools(list []filePool) []Pool {
	var all []Pool
	seen := make(map[string]bool)
	for i, p := range list {
		at := fmt.Sprintf("pool[%d].", i)
		k.unique(at, p.Name, seen)
		pool := Pool{Name: p.Name, Type: k.word(at+"type", p.Type, PoolDir, PoolLVM, PoolMount)}
		has := map[string]bool{"path": p.Path != "", "vg": p.VG != "", "source": p.Source != "", "fstype": p.FSType != "", "options": p.Options != "", "quota": p.Quota != "", "integrity": p.Integrity != "", "stage": p.Stage != ""}
		if p.Integrity != "" && p.Type != PoolMount {
			pool.Verity = k.word(at+"integrity", p.Integrity, typeVerity) != ""
			delete(has, "integrity")
		}
		if p.Quota != "" && p.Type != PoolMount {
			pool.Quota = k.size(at+"quota", p.Quota, minQuota, maxSize)
			delete(has, "quota")
		}
		switch p.Type {
		case PoolDir:
			pool.Path = k.directory(at+"path", p.Path)
			delete(has, "path")
		case PoolLVM:
			pool.VG = p.VG
			if p.VG == "" {
				k.refuse(at+"vg", "a pool of type lvm needs the volume group's name, as `vgs` shows it")
			}
			delete(has, "vg")
		case PoolMount:
			pool.Source, pool.FSType, pool.Options = p.Source, p.FSType, p.Options
			if p.Source == "" {
				k.refuse(at+"source", "a pool of type mount needs what is mounted: a device, LABEL=..., UUID=... or server:/export")
			}
			pool.Stage = p.Stage
			delete(has, "stage")
			delete(has, "source")
			delete(has, "fstype")
			delete(has, "options")
		}
		k.unwanted(at, p.Type, has)
		all = append(all, pool)
	}
	for i, p := range all {
		k.writable(fmt.Sprintf("pool[%d].stage", i), p.Stage, all)
	}
	return all
}

// writable refuses a pool's name that is none of those that images can be added to.
func (k *checker) writable(key, name string, pools []Pool) {
	for _, p := range pools {
		if p.Name == name && p.Type != PoolMount {
			return
		}
	}
	if name != "" {
		k.refuse(key, "%q is no [[pool]] of type dir or lvm", name)
	}
}

// unwanted refuses keys that another type of table has.
func (k *checker) unwanted(at, kind string, has map[string]bool) {
	for name, there := range has {
		if there {
			k.refuse(at+name, "a table of type %s has no such key", kind)
		}
	}
}

// unique checks a table's name, which is part of how people name a disc.
func (k *checker) unique(at, name string, seen map[string]bool) {
	switch {
	case name == "":
		k.refuse(at+"name", "a name is needed, of letters, digits, '-', '_' and '.'")
	case len(name) > maxName:
		k.refuse(at+"name", "%q has %d bytes; at most %d are allowed", name, len(name), maxName)
	case strings.Trim(name, nameLetters) != "" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-"):
		k.refuse(at+"name", "%q has to be letters, digits, '-', '_' and '.', and begin with none of '-' and '.'", name)
	case seen[name]:
		k.refuse(at+"name", "%q is there twice", name)
	}
	seen[name] = true
}

const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
