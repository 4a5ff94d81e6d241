package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"
)

// isNFS reports whether a file system is an export of a server: its source is
// SERVER:/EXPORT, with an IPv6 address in brackets.
func isNFS(f FileSystem) bool {
	return strings.HasPrefix(f.Type, "nfs") || f.Type == "" && !strings.HasPrefix(f.Source, "/") && strings.Contains(f.Source, ":/")
}

// mountNFS does what mount.nfs(8) does besides mount(2): it finds the server's address,
// which the kernel wants as a number (nfs_parse_monolithic needs addr=), and tries the
// versions from the newest on. Version 3's questions to the server's mountd are the
// kernel's own.
func (v *mountVolume) mountNFS(ctx context.Context, f FileSystem, point string, flags uintptr, data string) error {
	server, _, ok := strings.Cut(f.Source, ":/")
	if server = strings.Trim(server, "[]"); !ok || server == "" {
		return &Error{Ref: v.ref, Reason: BadName, Detail: fmt.Sprintf("%q is no export of a server", f.Source), Next: "write server:/export"}
	}
	addresses, err := v.host.resolve(ctx, server)
	if err != nil {
		return &Error{Ref: v.ref, Reason: NotHere, Detail: fmt.Sprintf("the server's address isn't known: %v", err), Next: "see the server's name, or write its address", Err: err}
	}
	versions := []string{"vers=4.2", "vers=4.1", "vers=4.0", "vers=3"}
	switch {
	case strings.Contains(","+data, ",vers=") || strings.Contains(","+data, ",nfsvers="):
		versions = []string{""}
	case f.Type == "nfs4":
		versions = versions[:3]
	}
	for _, address := range addresses {
		for _, version := range versions {
			if ctx.Err() != nil {
				return late(v.ref, ctx.Err())
			}
			var words []string
			for _, w := range []string{data, version, "addr=" + address.Unmap().String()} {
				if w != "" {
					words = append(words, w)
				}
			}
			_, err = mount.Mount(f.Source, point, "nfs", strings.Join(words, ","), flags)
			if err == nil {
				return nil
			}
			if !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EINVAL) {
				break // not for the version
			}
		}
	}
	return v.refused(f, err)
}

// resolve finds the addresses of a host, which may be one itself.
func (h *Host) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	h.mu.Lock()
	find := h.options.Resolve
	h.mu.Unlock()
	if find == nil {
		return new(net.Resolver).LookupNetIP(ctx, "ip", name)
	}
	return find(ctx, name)
}
