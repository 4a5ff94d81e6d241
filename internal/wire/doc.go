// Package wire is what goes over the API: the words and shapes that the agent, the
// server and the clients share. Names here are part of the API: they are added to,
// never renamed.
//
// It needs nothing but the standard library's smallest parts, and stays so: trayctl
// lives for milliseconds, a good part of which the kernel spends on bringing in what
// is linked.
package wire
