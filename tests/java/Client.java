import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Creates a meter, refills it twice under one idempotency key and reads it, with an HttpClient that nobody configured. */
class Client {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        String key = arguments[1];
        String names = "\"workspaceId\": \"java\", \"externalMeterId\": \"m\"";
        post(url + "/api/v1/customer-billing", key, "\"java-create\"", "{" + names + "}");
        for (int time = 0; time < 2; time++) {
            post(url + "/api/v1/customer-billing/refill", key, "\"java-refill\"", "{" + names + ", \"refill\": 10}");
        }
        String query = "{ billingMeter(workspaceId: \\\"java\\\", externalMeterId: \\\"m\\\") { totalCredits } }";
        post(url + "/graphql", key, null, "{\"query\": \"" + query + "\"}");
    }

    private static void post(String url, String key, String idempotencyKey, String body) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url))
            .header("Authorization", "Bearer " + key)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body));
        if (idempotencyKey != null) {
            request.header("Idempotency-Key", idempotencyKey);
        }
        HttpResponse<String> response = CLIENT.send(request.build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(response.version() + " " + response.statusCode() + " " + response.body());
    }
}
