// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Result is what became of a deed.
type Result struct {
	// Status is its exit status, -1 if Signal ended it.
	Status int    `json:"status"`
	Signal string `json:"signal,omitempty"`
	// Output has what it wrote.
	Output string `json:"output"`
}

// serve runs deeds that are asked for by HTTP, so that their parent is the
// container's first process and nothing has to be started in the container from
// outside.
func serve(args []string) error {
	at := []string{":7000", ":7001"}
	if len(args) > 0 {
		if err := want(args, "ADDRESS-TO-SERVE", "ADDRESS-THAT-ANSWERS-EXIT"); err != nil {
			return err
		}
		at = args
	}
	asked, err := net.Listen("tcp", at[0])
	if err != nil {
		return err
	}
	ended, err := net.Listen("tcp", at[1])
	if err != nil {
		return err
	}
	fmt.Println(asked.Addr(), ended.Addr())
	failed := make(chan error, 3)
	go func() { failed <- endShells(ended) }()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /run", runDeed)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { failed <- server.Serve(asked) }()
	go func() { failed <- wait(nil) }()
	return <-failed
}

func runDeed(w http.ResponseWriter, r *http.Request) {
	res, err := start(r.URL.Query()["arg"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(res)
}

// start runs a deed in a process of its own and waits for its end.
func start(args []string) (Result, error) {
	self, err := os.Executable()
	if err != nil {
		return Result{}, err
	}
	out, err := exec.Command(self, args...).CombinedOutput()
	res := Result{Output: string(out)}
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return res, err
	}
	res.Status = ended.ExitCode()
	if s, ok := ended.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		res.Signal = s.Signal().String()
	}
	return res, nil
}

// endShells tells shells that connect to end.
func endShells(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if _, err := io.WriteString(conn, "exit\n"); err == nil {
				_, _ = io.Copy(io.Discard, conn)
			}
		}()
	}
}
