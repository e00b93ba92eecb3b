// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import "errors"

func runOnPty() { fatal(errors.New("needs Linux")) }
