// Package access says who asks and what they may: by the kernel's word on a unix socket, by
// tokens, client certificates and sessions elsewhere.
//
// There are three roles. View looks at everything and changes nothing; Change does all that
// is done to machines, discs and images; Admin besides inserts what was not validated and
// makes tokens. Each includes the ones before it.
//
// The package knows nothing of HTTP: internal/api asks it who a request is from, and refuses.
package access
