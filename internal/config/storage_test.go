package config

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
)

// TestReferenceStorage: the examples in the reference's comments are right.
func TestReferenceStorage(t *testing.T) {
	example := regexp.MustCompile(`(?m)^#     (.*)$`)
	var text []string
	for _, line := range example.FindAllStringSubmatch(Reference(), -1) {
		text = append(text, line[1])
	}
	c, problems := parse([]byte(strings.Join(text, "\n")))
	require.Empty(t, problems)
	require.Len(t, c.Volumes, 2)
	assert.Equal(t, volume.Definition{Name: "debian", Linear: []volume.Extent{{Device: "/dev/sdb", Start: 1 << 20, Length: 734003200}}}, c.Volumes[0])
	assert.Equal(t, "/srv/verity/installer.hash", c.Volumes[1].Verity.Hash)
	require.Len(t, c.Pools, 3)
	assert.Equal(t, Pool{Name: "local", Type: PoolDir, Path: "/var/lib/trayd/images", Quota: 200 << 30, Verity: true}, c.Pools[0])
	assert.Equal(t, Pool{Name: "fast", Type: PoolLVM, VG: "vg0"}, c.Pools[1])
	assert.Equal(t, Pool{Name: "stick", Type: PoolMount, Source: "LABEL=DISCS", FSType: "ext4", Stage: "local"}, c.Pools[2])
	assert.Equal(t, []Credential{
		{Host: "mirror.example.com", Path: "/private/", Username: "edge", PasswordFile: "/etc/trayd/mirror.password"},
		{Host: "images.example.com:8443", TokenFile: "/etc/trayd/images.token", CertFile: "/etc/trayd/edge.crt", KeyFile: "/etc/trayd/edge.key"},
	}, c.Credentials)
}

func TestStorageMistakes(t *testing.T) {
	for _, row := range []struct {
		text string
		line int
		key  string
		says string
	}{
		{"[[volume]]\ntype = 'linear'\nextents = [{device = '/dev/x'}]", 1, "volume[0].name", "a name is needed"},
		{"[[volume]]\nname = 'a/b'\ntype = 'linear'\nextents = [{device = '/dev/x'}]", 2, "volume[0].name", "letters, digits"},
		{"[[volume]]\nname = 'a'\ntype = 'crypt'", 3, "volume[0].type", `"crypt" is none of "linear", "verity"`},
		{"[[volume]]\nname = 'a'\ntype = 'linear'", 1, "volume[0].extents", "at least one"},
		{"[[volume]]\nname = 'a'\ntype = 'linear'\nextents = [{device = 'x'}]", 4, "volume[0].extents", "not absolute"},
		{"[[volume]]\nname = 'a'\ntype = 'linear'\nextents = [{device = '/x', start = 100}]", 4, "volume[0].extents", "whole sectors"},
		{"[[volume]]\nname = 'a'\ntype = 'linear'\nextents = [{device = '/x'}]\nroot_hash = '00'", 5, "volume[0].root_hash", "no such key"},
		{"[[volume]]\nname = 'a'\ntype = 'verity'\ndata = '/x'\nhash = '/y'\nroot_hash = 'xyz'", 6, "volume[0].root_hash", "hexadecimal"},
		{"[[volume]]\nname = 'a'\ntype = 'linear'\nextents = [{device = '/x'}]\n[[volume]]\nname = 'a'\ntype = 'linear'\nextents = [{device = '/x'}]", 6, "volume[1].name", "twice"},
		{"[[volume]]\nname = 5", 2, "volume.name", "a string in quotes"},
		{"[[volume]]\nnme = 'x'\nname = 'a'\ntype = 'linear'\nextents = [{device = '/x'}]", 2, "volume.nme", "did you mean volume.name?"},
		{"[[pool]]\nname = 'p'\ntype = 'lvm'", 1, "pool[0].vg", "volume group"},
		{"[[pool]]\nname = 'p'\ntype = 'dir'\npath = 'x'", 4, "pool[0].path", "not absolute"},
		{"[[pool]]\nname = 'p'\ntype = 'dir'\npath = '/x'\nvg = 'y'", 5, "pool[0].vg", "no such key"},
		{"[[pool]]\nname = 'p'\ntype = 'mount'", 1, "pool[0].source", "what is mounted"},
	} {
		t.Run(row.key+" "+row.says, func(t *testing.T) {
			_, problems := parse([]byte(row.text))
			require.NotEmpty(t, problems)
			assert.Equal(t, row.line, problems[0].Line)
			assert.Equal(t, row.key, problems[0].Key)
			assert.Contains(t, problems[0].Detail, row.says)
		})
	}
}
