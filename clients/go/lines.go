package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"sync"

	pb "tensorgate/inference"
)

const longestLine = 64 << 20 // bytes

// Rows turns lines of JSON into requests, whose ids are the lines' numbers.
type Rows struct {
	client  *Client
	answers *Answers
	lines   *bufio.Scanner
	number  int
}

// NewRows reads from a file. A line that holds no tensor is answered here, the server never sees it.
func NewRows(file io.Reader, client *Client, answers *Answers) *Rows {
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, longestLine)
	return &Rows{client: client, answers: answers, lines: lines}
}

// Next is the next line's request, nil at the end.
func (r *Rows) Next() *pb.ModelInferRequest {
	for r.lines.Scan() {
		r.number++
		if len(bytes.TrimSpace(r.lines.Bytes())) == 0 {
			continue
		}
		id := strconv.Itoa(r.number)
		tensor, err := ParseTensor(r.lines.Bytes())
		if err == nil {
			return r.client.Request(id, tensor)
		}
		r.answers.Write(Answer{ID: id, Error: err.Error()})
	}
	return nil
}

// Err tells why reading ended before the file did.
func (r *Rows) Err() error {
	return r.lines.Err()
}

// Answer is a line of output: outputs, or an error.
type Answer struct {
	ID      string            `json:"id"`
	Model   string            `json:"model,omitempty"`
	Version string            `json:"version,omitempty"`
	Outputs map[string]Output `json:"outputs,omitempty"`
	Error   string            `json:"error,omitempty"`
}

// Output is one tensor. What is no number in Go (BYTES, FP16, BF16) stays as it travelled, in base64.
type Output struct {
	Datatype string        `json:"datatype"`
	Shape    []int64       `json:"shape"`
	Data     []interface{} `json:"data,omitempty"`
	Base64   []byte        `json:"base64,omitempty"`
}

// AnswerOf reads a response.
func AnswerOf(response *pb.ModelInferResponse) Answer {
	if len(response.RawOutputContents) != len(response.Outputs) {
		return Answer{ID: response.Id, Error: "the server sent typed contents; this program reads raw ones"}
	}
	answer := Answer{
		ID: response.Id, Model: response.ModelName, Version: response.ModelVersion, Outputs: map[string]Output{},
	}
	for index, tensor := range response.Outputs {
		output := Output{Datatype: tensor.Datatype, Shape: tensor.Shape}
		if output.Data = elements(tensor.Datatype, response.RawOutputContents[index]); output.Data == nil {
			output.Base64 = response.RawOutputContents[index]
		}
		answer.Outputs[tensor.Name] = output
	}
	return answer
}

// Answers writes lines of JSON, from any goroutine.
type Answers struct {
	out           io.Writer
	mutex         sync.Mutex
	count, failed int
	err           error
}

// Write writes one answer.
func (a *Answers) Write(answer Answer) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.count++
	if answer.Error != "" {
		a.failed++
	}
	if err := json.NewEncoder(a.out).Encode(answer); err != nil && a.err == nil {
		a.err = err
	}
}

// Err tells whether all was well.
func (a *Answers) Err() error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.err == nil && a.failed > 0 {
		return fmt.Errorf("%d of %d rows failed", a.failed, a.count)
	}
	return a.err
}
