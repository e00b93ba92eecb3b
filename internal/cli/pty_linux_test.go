// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// runOnPty is the script command onpty COLUMNS ROWS COMMAND...: it runs a
// command whose standard output and error are a terminal of that size, copies
// what appears there and exits with the command's exit code.
func runOnPty() {
	var size unix.Winsize
	if len(os.Args) < 4 {
		fatal(errors.New("usage: onpty columns rows command..."))
	}
	if _, err := fmt.Sscan(os.Args[1]+" "+os.Args[2], &size.Col, &size.Row); err != nil {
		fatal(err)
	}
	code, err := onPty(size, os.Args[3:])
	if err != nil {
		fatal(err)
	}
	os.Exit(code)
}

func onPty(size unix.Winsize, args []string) (int, error) {
	master, slave, err := openPty(size)
	if err != nil {
		return 0, err
	}
	defer master.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = slave, slave
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(err, slave.Close())
	}
	slave.Close()
	// The read ends with EIO once the command has closed its side.
	if _, err := io.Copy(os.Stdout, master); err != nil && !errors.Is(err, syscall.EIO) {
		return 0, err
	}
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

func openPty(size unix.Winsize) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
