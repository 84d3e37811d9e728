// Command infer sends rows of numbers to one model of an Open Inference Protocol v2 server and prints what it answers:
// JSON lines in, JSON lines out.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "tensorgate/inference"
)

// A server that vanished without a word is noticed by this. More frequent pings than one in five minutes are refused
// by servers with gRPC's default settings.
var alive = keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}

func main() {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: infer [-unary] MODEL [ADDRESS] < rows.jsonl")
		flag.PrintDefaults()
	}
	unary := flag.Bool("unary", false, "one ModelInfer call after the other, in place of one stream")
	flag.Parse()
	if flag.NArg() < 1 || flag.NArg() > 2 {
		flag.Usage()
		os.Exit(2)
	}
	address := "localhost:8001"
	if flag.NArg() == 2 {
		address = flag.Arg(1)
	}
	if err := run(context.Background(), flag.Arg(0), address, *unary); err != nil {
		fmt.Fprintln(os.Stderr, "infer:", explain(err, address))
		os.Exit(1)
	}
}

func run(ctx context.Context, model, address string, unary bool) error {
	// WithInsecure has a successor in later releases of grpc-go; this name is in all of them.
	connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithKeepaliveParams(alive))
	if err != nil {
		return err
	}
	defer connection.Close()
	client, err := NewClient(ctx, pb.NewGRPCInferenceServiceClient(connection), model)
	if err != nil {
		return err
	}
	answers := &Answers{out: os.Stdout}
	rows := NewRows(os.Stdin, client, answers)
	if unary {
		err = client.InferEach(ctx, rows.Next, answers.Write)
	} else {
		err = client.Stream(ctx, rows.Next, answers.Write)
	}
	if err != nil {
		return err
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return answers.Err()
}

// explain is the one line for whoever started the program.
func explain(err error, address string) string {
	failure, isStatus := status.FromError(err)
	switch {
	case !isStatus:
		return err.Error()
	case failure.Code() == codes.Unavailable:
		return fmt.Sprintf("cannot reach the server at %s: %s", address, failure.Message())
	default:
		return failure.Message()
	}
}
