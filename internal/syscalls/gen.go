// SPDX-License-Identifier: Apache-2.0

package syscalls

//go:generate go run ../../tools/syscallnames
