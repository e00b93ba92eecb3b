// SPDX-License-Identifier: Apache-2.0

// Command orb8 shows what the workloads of a host do on its network.
package main

import (
	"os"

	"github.com/Ignoramuss/orb8/internal/cli"
)

// version is set by the linker: -X main.version=1.2.3.
var version string

func main() { os.Exit(cli.Main(version)) }
