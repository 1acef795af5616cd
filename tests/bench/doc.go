// Command bench compares untorn with the native filesystem and with what people mount today.
//
// Every subject works in a directory of its own on the same freshly made filesystem. A workload is run on all of them in
// turn, then again, for a number of rounds, because the speed of a shared machine drifts: only figures of one round are
// divided by each other. The tables show the median of those ratios and their spread.
//
// scripts/bench prepares the machine and runs it.
package main
