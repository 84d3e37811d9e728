package tensorgate.client;

import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.io.IOException;
import java.util.HashSet;
import java.util.Set;
import tensorgate.inference.ModelInferRequest;
import tensorgate.inference.ModelStreamInferResponse;

/** One ModelStreamInfer call. Its sender waits while the server is behind; it knows which requests are open. */
final class InferStream implements ClientResponseObserver<ModelInferRequest, ModelStreamInferResponse> {
    private final Answers answers;
    private final Set<String> open = new HashSet<>();
    private ClientCallStreamObserver<ModelInferRequest> call;
    private boolean allSent;
    private boolean ended;
    private Throwable failure;

    InferStream(Answers answers) {
        this.answers = answers;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<ModelInferRequest> call) {
        this.call = call;
        call.setOnReadyHandler(this::wake);
    }

    /** Sends everything; what goes wrong is told by await. */
    void sendAll(Rows rows) {
        try {
            for (ModelInferRequest request = rows.next(); request != null; request = rows.next()) {
                send(request);
            }
            finish();
        } catch (IOException | InterruptedException | RuntimeException cause) {
            stop(cause);
        }
    }

    private synchronized void send(ModelInferRequest request) throws InterruptedException {
        while (!ended && !call.isReady()) {
            wait();
        }
        if (!ended) {
            open.add(request.getId());
            call.onNext(request);
        }
    }

    private synchronized void finish() {
        if (!ended) {
            allSent = true;
            call.onCompleted();
        }
    }

    @Override
    public void onNext(ModelStreamInferResponse response) {
        try {
            answer(response); // the next response is asked for when this returns
        } catch (IOException | RuntimeException cause) {
            stop(cause);
        }
    }

    private void answer(ModelStreamInferResponse response) throws IOException {
        String id = response.getInferResponse().getId();
        String error = response.getErrorMessage();
        if (!close(id)) {
            throw new IOException("the server answered a request that is not open, id '" + id + "': " + error);
        }
        if (error.isEmpty()) {
            answers.write(response.getInferResponse());
        } else {
            answers.writeError(id, error);
        }
    }

    private synchronized boolean close(String id) {
        return open.remove(id);
    }

    @Override
    public void onError(Throwable cause) {
        end(cause);
    }

    @Override
    public void onCompleted() {
        end(null);
    }

    private synchronized void wake() {
        notifyAll();
    }

    private void stop(Throwable cause) {
        end(cause);
        call.cancel("the client gave up", cause);
    }

    private synchronized void end(Throwable cause) {
        if (!ended) {
            ended = true;
            failure = cause;
        }
        notifyAll();
    }

    /** Returns when everything is answered. */
    synchronized void await() throws IOException, InterruptedException {
        while (!ended) {
            wait();
        }
        if (failure instanceof RuntimeException) { // a status, for one
            throw (RuntimeException) failure;
        }
        if (failure != null) {
            throw new IOException(failure.getMessage(), failure);
        }
        if (!open.isEmpty()) {
            throw new IOException("the server ended the stream; unanswered requests: " + open.size());
        }
        if (!allSent) {
            throw new IOException("the server ended the stream before the input did");
        }
    }
}
