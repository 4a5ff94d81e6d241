package page

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// novnc is the console's viewer, as its npm package is published: `novnc/update VERSION`
// takes another one. Its code is under the MPL-2.0 (novnc/LICENSE.txt), pako in it under
// the MIT licence (novnc/LICENSE.pako).
//
//go:embed novnc/novnc.tgz
var novnc []byte

// maxNoVNC is the most that the package may hold, in bytes: it has 0.7 MB.
const maxNoVNC = 4 << 20

// novncFiles are the scripts of the package, by their paths in it.
func novncFiles() (map[string][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(novnc))
	if err != nil {
		return nil, fmt.Errorf("unpack noVNC: %w", err)
	}
	all := make(map[string][]byte)
	archive := tar.NewReader(io.LimitReader(z, maxNoVNC))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("unpack noVNC: %w", err)
		}
		name, ok := strings.CutPrefix(h.Name, "package/")
		if !ok || h.Typeflag != tar.TypeReg || path.Ext(name) != ".js" || !fs.ValidPath(name) {
			continue
		}
		if all[name], err = io.ReadAll(archive); err != nil {
			return nil, fmt.Errorf("unpack noVNC: %w", err)
		}
	}
}
