// Package config reads trayd's configuration: a TOML file in, a validated Config or
// every mistake in the file out.
//
// Every key has a working default, so that an empty file, or none at the default
// path, is a configuration. What is not understood is refused: an unknown key, a
// value of the wrong kind, a path that isn't absolute. A mistake names its line, its
// key, the value, and what is allowed instead.
//
// reference.toml beside this file holds every key with its default and what it
// means. It is embedded (`trayd --print-config` prints it), and the tests parse it,
// so that it can't drift from the code.
package config
