package library

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/wire"
)

// integrityVerity is the Integrity of an image that is read through dm-verity.
const integrityVerity = "verity"

// verityPrefix begins the names of the device-mapper volumes of images. The configuration
// can't define one of that name: a digest follows.
const verityPrefix = "image."

// verityRef is the volume by which an image is read that carries its hash tree: named
// after the content, so that all its names are one volume.
func verityRef(e *entry) *volume.Ref {
	return &volume.Ref{Kind: volume.DM, Name: verityPrefix + e.Pool[:min(len(e.Pool), 40)] + "." + e.SHA256[:min(len(e.SHA256), 32)]}
}

// Definition is the device-mapper volume of an image, by its name.
func (l *Library) Definition(name string) (volume.Definition, bool) {
	if !strings.HasPrefix(name, verityPrefix) {
		return volume.Definition{}, false
	}
	for _, e := range l.entries() {
		if e.Integrity != integrityVerity || e.Place == "" || verityRef(e).Name != name {
			continue
		}
		p, err := l.pool(e.Pool)
		if err != nil || !l.isIn(p, e.Place) {
			continue
		}
		d := volume.Definition{Name: name, Verity: &volume.Verity{RootHash: e.RootHash}}
		if p.Type == LVM {
			ref, err := volume.ParseRef(e.Place)
			if err != nil {
				continue
			}
			d.Verity.Under, d.Verity.HashOffset = &ref, treeOffset(e.Size)
		} else {
			d.Verity.Data, d.Verity.Hash = e.Place, treeFile(e.Place)
		}
		return d, true
	}
	return volume.Definition{}, false
}

// treeFile is the file of the hash tree of a file.
func treeFile(place string) string { return strings.TrimSuffix(place, ".iso") + ".verity" }

// treeTemp is the file of a hash tree that isn't whole.
func treeTemp(place string) string {
	return filepath.Join(filepath.Dir(place), "."+filepath.Base(treeFile(place))+partial)
}

// treeOffset is where the hash tree begins behind size bytes of data on a volume.
func treeOffset(size int64) int64 {
	const block = 4096
	return (size + block - 1) / block * block
}

// withTree is how many bytes an image needs with its hash tree behind it.
func withTree(size int64) (int64, error) {
	tree, err := volume.VerityTreeSize(size)
	if err != nil {
		return 0, problem(Invalid, "add it without --integrity verity", "it can't be read through dm-verity: %w", err)
	}
	return treeOffset(size) + tree, nil
}

// hashTree makes the hash tree of an image that is to be read through dm-verity. It may be
// repeated. For a volume it is made before the volume has its place, for a file after.
func (j *job) hashTree(ctx context.Context, place string) error {
	e := j.copy()
	if e.Integrity != integrityVerity {
		return nil
	}
	var root string
	var err error
	if j.pool.Type == LVM {
		root, err = j.treeBehind(ctx, e)
	} else {
		root, err = treeBeside(ctx, place, e.Size)
	}
	if err != nil {
		return problem(Failed, "see the disk that holds pool "+j.pool.Name, "its hash tree can't be made: %w", err)
	}
	j.change(func(e *entry) { e.RootHash = root })
	return nil
}

func (j *job) treeBehind(ctx context.Context, e *entry) (root string, err error) {
	size, err := withTree(e.Size)
	if err != nil {
		return "", err
	}
	f, err := j.store.open(ctx, e.unfinished(), size)
	if err != nil {
		return "", err
	}
	root, err = volume.WriteVerityTree(ctx, f, treeOffset(e.Size), io.NewSectionReader(f, 0, e.Size), e.Size)
	if err == nil {
		err = f.Sync()
	}
	return root, errors.Join(err, f.Close())
}

func treeBeside(ctx context.Context, place string, size int64) (root string, err error) {
	data, err := os.Open(place)
	if err != nil {
		return "", err
	}
	defer data.Close()
	tree := treeFile(place)
	temp := treeTemp(place)
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o444)
	if err != nil {
		return "", err
	}
	root, err = volume.WriteVerityTree(ctx, f, 0, data, size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, tree)
	}
	if err == nil {
		return root, syncDir(filepath.Dir(tree))
	}
	return "", errors.Join(err, absentIsFine(os.Remove(temp)))
}

// removeTree removes the hash tree beside a file.
func (l *Library) removeTree(e *entry) error {
	if !strings.HasPrefix(e.Place, "/") {
		return nil // it went with its volume
	}
	return errors.Join(absentIsFine(os.Remove(treeTemp(e.Place))), absentIsFine(os.Remove(treeFile(e.Place))))
}

// isRoot reports whether a text is a root hash of SHA-256.
func isRoot(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// carries reports whether an image can be used in place of one with that integrity.
func carries(e *entry, integrity string) bool {
	return e.Integrity == integrity && (integrity == "" || isRoot(e.RootHash)) && e.State == wire.ImageReady
}
