package tensorgate.client;

import io.grpc.Channel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import tensorgate.inference.GRPCInferenceServiceGrpc;
import tensorgate.inference.ModelInferRequest;
import tensorgate.inference.ModelMetadataRequest;
import tensorgate.inference.ModelMetadataResponse;

/** Calls one model. It holds no state of a call: a service keeps one and uses it from all its threads. */
final class Client {
    private static final long DEADLINE_SECONDS = 10;

    private final Channel channel;
    private final String model;
    private final ModelMetadataResponse.TensorMetadata input;

    /** Asks the server what the model takes. */
    Client(Channel channel, String model) throws IOException {
        this.channel = channel;
        this.model = model;
        ModelMetadataResponse metadata =
                blocking().modelMetadata(ModelMetadataRequest.newBuilder().setName(model).build());
        if (metadata.getInputsCount() != 1 || !metadata.getInputs(0).getDatatype().equals("FP32")) {
            throw new IOException(
                    "model '" + model + "' takes other things than one FP32 input; this program sends just that");
        }
        input = metadata.getInputs(0);
    }

    /** A stub whose deadline starts now: every call takes a fresh one. */
    private GRPCInferenceServiceGrpc.GRPCInferenceServiceBlockingStub blocking() {
        return GRPCInferenceServiceGrpc.newBlockingStub(channel).withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS);
    }

    /** Asks for a prediction of one tensor. A tensor that lacks just the first dimension is a batch of one. */
    ModelInferRequest request(String id, Tensor tensor) {
        List<Long> shape = new ArrayList<>(tensor.shape());
        if (shape.size() == input.getShapeCount() - 1) {
            shape.add(0, 1L);
        }
        return ModelInferRequest.newBuilder()
                .setModelName(model)
                .setId(id)
                .addInputs(ModelInferRequest.InferInputTensor.newBuilder()
                        .setName(input.getName())
                        .setDatatype(input.getDatatype())
                        .addAllShape(shape))
                .addRawInputContents(tensor.raw())
                .build();
    }

    /** One ModelInfer call for each row, one after the other. A refused request does not end it. */
    void inferEach(Rows rows, Answers answers) throws IOException {
        for (ModelInferRequest request = rows.next(); request != null; request = rows.next()) {
            try {
                answers.write(blocking().modelInfer(request));
            } catch (StatusRuntimeException failure) {
                if (failure.getStatus().getCode() == Status.Code.UNAVAILABLE) {
                    throw failure;
                }
                answers.writeError(request.getId(), Infer.reason(failure.getStatus()));
            }
        }
    }

    /** All rows over one ModelStreamInfer call; each answer is written as it comes. */
    void stream(Rows rows, Answers answers) throws IOException, InterruptedException {
        InferStream stream = new InferStream(answers);
        GRPCInferenceServiceGrpc.newStub(channel).modelStreamInfer(stream);
        Thread sender = new Thread(() -> stream.sendAll(rows), "sender");
        sender.setDaemon(true); // it may wait for input when the server has ended the stream
        sender.start();
        stream.await();
    }
}
