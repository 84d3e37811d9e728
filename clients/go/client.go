package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "tensorgate/inference"
)

const deadline = 10 * time.Second

// Client calls one model. It holds no state of a call: a service keeps one and uses it from all its goroutines.
type Client struct {
	stub  pb.GRPCInferenceServiceClient
	model string
	input *pb.ModelMetadataResponse_TensorMetadata
}

// NewClient asks the server what the model takes.
func NewClient(ctx context.Context, stub pb.GRPCInferenceServiceClient, model string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	metadata, err := stub.ModelMetadata(ctx, &pb.ModelMetadataRequest{Name: model})
	if err != nil {
		return nil, err
	}
	if len(metadata.Inputs) != 1 || metadata.Inputs[0].Datatype != "FP32" {
		return nil, fmt.Errorf("model '%s' takes other things than one FP32 input; this program sends just that", model)
	}
	return &Client{stub, model, metadata.Inputs[0]}, nil
}

// Request asks for a prediction of one tensor. A tensor that lacks just the first dimension is a batch of one.
func (c *Client) Request(id string, tensor *Tensor) *pb.ModelInferRequest {
	shape := tensor.Shape
	if len(shape) == len(c.input.Shape)-1 {
		shape = append([]int64{1}, shape...)
	}
	return &pb.ModelInferRequest{
		ModelName: c.model,
		Id:        id,
		Inputs: []*pb.ModelInferRequest_InferInputTensor{
			{Name: c.input.Name, Datatype: "FP32", Shape: shape},
		},
		RawInputContents: [][]byte{tensor.Raw()},
	}
}

// InferEach makes one ModelInfer call for each request until next gives none. A refused request does not end it.
func (c *Client) InferEach(ctx context.Context, next func() *pb.ModelInferRequest, answer func(Answer)) error {
	for request := next(); request != nil; request = next() {
		response, err := c.infer(ctx, request)
		if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled {
			return err
		}
		if err != nil {
			answer(Answer{ID: request.Id, Error: status.Convert(err).Message()})
		} else {
			answer(AnswerOf(response))
		}
	}
	return nil
}

func (c *Client) infer(ctx context.Context, request *pb.ModelInferRequest) (*pb.ModelInferResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return c.stub.ModelInfer(ctx, request)
}

// Stream sends all that next gives over one ModelStreamInfer call, and hands each answer on as it comes.
func (c *Client) Stream(ctx context.Context, next func() *pb.ModelInferRequest, answer func(Answer)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a sender still at work ends with the stream
	stream, err := c.stub.ModelStreamInfer(ctx)
	if err != nil {
		return err
	}
	open := &openRequests{ids: map[string]bool{}}
	go send(stream, next, open)
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return open.atEnd()
		}
		if err != nil {
			return err
		}
		result, problem := response.GetInferResponse(), response.GetErrorMessage()
		id := result.GetId()
		if !open.remove(id) {
			return fmt.Errorf("the server answered a request that is not open, id '%s': %s", id, problem)
		}
		if problem != "" {
			answer(Answer{ID: id, Error: problem})
		} else {
			answer(AnswerOf(result))
		}
	}
}

type requestStream = pb.GRPCInferenceService_ModelStreamInferClient

func send(stream requestStream, next func() *pb.ModelInferRequest, open *openRequests) {
	for request := next(); request != nil; request = next() {
		open.add(request.Id)
		if stream.Send(request) != nil { // Send waits while the server is behind; Recv has the reason of a failure
			return
		}
	}
	open.complete()
	stream.CloseSend()
}

// openRequests are those of a stream that were sent and not answered.
type openRequests struct {
	mutex sync.Mutex
	ids   map[string]bool
	all   bool
}

func (o *openRequests) add(id string) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.ids[id] = true
}

func (o *openRequests) remove(id string) bool {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	known := o.ids[id]
	delete(o.ids, id)
	return known
}

func (o *openRequests) complete() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.all = true
}

func (o *openRequests) atEnd() error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	switch {
	case len(o.ids) > 0:
		return fmt.Errorf("the server ended the stream; unanswered requests: %d", len(o.ids))
	case !o.all:
		return errors.New("the server ended the stream before the input did")
	}
	return nil
}
