// Package hook runs the executables of a folder for every event.
//
// Each gets the event as one line of JSON on its standard input, and its type, id, machine
// and drive in an environment that holds little else. One executable handles one event at a
// time, in their order; different ones don't wait for each other. Nobody waits for any of
// them: an executable that is too slow loses its oldest events, and the log says so.
//
// Hooks run as trayd's user, without the capabilities that trayd has, for a limited time, and
// end when trayd does. What they leave running is ended with them.
package hook
