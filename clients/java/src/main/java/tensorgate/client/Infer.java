package tensorgate.client;

import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;

/**
 * Sends rows of numbers to one model of an Open Inference Protocol v2 server and prints what it answers: JSON lines in,
 * JSON lines out.
 */
public final class Infer {
    private Infer() {}

    public static void main(String[] arguments) throws InterruptedException {
        List<String> operands = new ArrayList<>(Arrays.asList(arguments));
        boolean unary = operands.remove("--unary");
        if (operands.isEmpty() || operands.size() > 2 || operands.get(0).startsWith("-")) {
            System.err.println("usage: infer [--unary] MODEL [ADDRESS] < rows.jsonl");
            System.exit(2);
        }
        String address = operands.size() == 2 ? operands.get(1) : "localhost:8001";
        try {
            run(operands.get(0), address, unary);
        } catch (StatusRuntimeException | IOException | UncheckedIOException failure) {
            System.err.println("infer: " + explain(failure, address));
            System.exit(1);
        }
    }

    private static void run(String model, String address, boolean unary)
            throws IOException, InterruptedException {
        // A server that vanished without a word is noticed by the pings. Servers with gRPC's default settings refuse
        // more than one in five minutes.
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address)
                .usePlaintext()
                .keepAliveTime(5, TimeUnit.MINUTES)
                .build();
        try {
            Client client = new Client(channel, model);
            Answers answers = new Answers(System.out);
            Rows rows = new Rows(new InputStreamReader(System.in, StandardCharsets.UTF_8), client, answers);
            if (unary) {
                client.inferEach(rows, answers);
            } else {
                client.stream(rows, answers);
            }
            answers.check();
        } finally {
            channel.shutdownNow();
        }
    }

    /** The one line for whoever started the program. */
    private static String explain(Exception failure, String address) {
        if (!(failure instanceof StatusRuntimeException)) {
            return failure.getMessage();
        }
        Status status = ((StatusRuntimeException) failure).getStatus();
        if (status.getCode() != Status.Code.UNAVAILABLE) {
            return reason(status);
        }
        String cause = status.getCause() == null ? "" : ": " + status.getCause().getMessage();
        return "cannot reach the server at " + address + ": " + reason(status) + cause;
    }

    /** What a status says, at least its code. */
    static String reason(Status status) {
        return status.getDescription() == null ? status.getCode().toString() : status.getDescription();
    }
}
