// Package metrics is what monitoring sees of trayd: counters and histograms of what has
// happened, and the host as it is known at the moment of the look, in Prometheus' text format.
//
// The format is written here, in one small file. The usual library, client_golang, makes the
// program 2.7 MB larger, mostly for a second format (protobuf) that nobody asks a host of
// machines for; VictoriaMetrics/metrics is small, and writes HELP without a text.
//
// Labels are bounded: what comes from outside, such as an unknown verb, is counted as "other",
// and no machine's, drive's or image's name is a label. Pools are: the configuration names them.
package metrics
