package config

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/trayd/trayd/internal/access"
)

// API is where clients connect, and who they may be.
type API struct {
	Socket string
	// Group is whose members may change besides root, ViewGroup whose members may look;
	// empty for nobody.
	Group     string
	ViewGroup string
	// Listen are the addresses for TLS; none by default.
	Listen []netip.AddrPort
	// Names are what this host is called by those who come over TLS, besides its own name.
	Names []string
	// CertFile and KeyFile are the certificate for TLS; empty for one that trayd makes.
	CertFile, KeyFile string
	// ClientCAFile signs certificates of clients; empty for none. Clients says what those may
	// do, by their common names.
	ClientCAFile string
	Clients      map[string]access.Role
}

// fileAPI is the [api] table.
type fileAPI struct {
	Socket       string   `toml:"socket"`
	Group        string   `toml:"group"`
	ViewGroup    string   `toml:"view_group"`
	Listen       []string `toml:"listen"`
	Names        []string `toml:"names"`
	CertFile     string   `toml:"cert_file"`
	KeyFile      string   `toml:"key_file"`
	ClientCAFile string   `toml:"client_ca_file"`
}

// fileClient is a [[client]] table.
type fileClient struct {
	Name string `toml:"name"`
	Role string `toml:"role"`
}

func defaultAPI() fileAPI {
	return fileAPI{Socket: "/run/trayd/api.sock", Group: "trayd", ViewGroup: "trayd-view", Listen: []string{}, Names: []string{}}
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// api checks the [api] table and the [[client]] tables.
func (k *checker) api(f fileAPI, clients []fileClient) API {
	a := API{
		Socket:    k.socket("api.socket", f.Socket),
		Group:     k.group("api.group", f.Group),
		ViewGroup: k.group("api.view_group", f.ViewGroup),
		Names:     f.Names,
		CertFile:  k.optional("api.cert_file", f.CertFile),
		KeyFile:   k.optional("api.key_file", f.KeyFile),

		ClientCAFile: k.optional("api.client_ca_file", f.ClientCAFile),
	}
	for _, text := range f.Listen {
		at, err := netip.ParseAddrPort(text)
		if err != nil || at.Port() == 0 {
			k.refuse("api.listen", `%q is not an address and a port, such as "192.0.2.7:8440", "0.0.0.0:8440" (all of IPv4) or "[::]:8440" (all)`, text)
		}
		a.Listen = append(a.Listen, at)
	}
	for _, name := range f.Names {
		if !hostName.MatchString(name) {
			k.refuse("api.names", "%q is not a host's name, such as edge7.example.com", name)
		}
	}
	if (a.CertFile == "") != (a.KeyFile == "") {
		k.refuse("api.cert_file", "cert_file and key_file belong together")
	}
	for i, c := range clients {
		at := fmt.Sprintf("client[%d]", i)
		role, err := access.ParseRole(c.Role)
		if err != nil {
			k.refuse(at+".role", "%v", err)
		}
		if c.Name == "" {
			k.refuse(at+".name", "a client needs the common name of its certificate")
		}
		if a.Clients[c.Name] != access.None {
			k.refuse(at+".name", "%q is there twice", c.Name)
		}
		if a.Clients == nil {
			a.Clients = make(map[string]access.Role)
		}
		a.Clients[c.Name] = role
	}
	return a
}

// optional is a path, or none.
func (k *checker) optional(key, path string) string {
	if path == "" {
		return ""
	}
	return k.absolute(key, path)
}
