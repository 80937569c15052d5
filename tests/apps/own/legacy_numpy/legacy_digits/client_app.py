"""The clients: a NumPyClient, as ever."""

from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from legacy_digits.task import Net, get_weights, load_data, set_weights, train


class FlowerClient(NumPyClient):
    """Trains on a client's images."""

    def __init__(self, images, labels, epochs):
        self.net, self.images, self.labels, self.epochs = Net(), images, labels, epochs

    def fit(self, parameters, config):
        """Train from the server's weights."""
        set_weights(self.net, parameters)
        record_truth(self.images, self.labels)
        train(self.net, self.images, self.labels, self.epochs, config["lr"])
        return get_weights(self.net), len(self.images), {"note": '{"mylist": [1, 2]}'}


def client_fn(context: Context):
    """Build one client."""
    images, labels = load_data(context.node_config["partition-id"], context.run_config["images-per-client"])
    return FlowerClient(images, labels, context.run_config["local-epochs"]).to_client()


app = ClientApp(client_fn=client_fn)
